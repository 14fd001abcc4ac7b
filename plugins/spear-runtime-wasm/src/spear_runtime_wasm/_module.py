"""A loaded module: its imports checked and bound, and what each entry point needs."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from spear_core.api import Artifact
from spear_core.errors import UnsupportedArtifactError

from . import _hostcalls, _wasi
from ._failures import one_line
from ._ffi import MAX_RESULTS, CompiledModule, EngineError, Export, Import
from ._host import Host

DEFAULT_ENTRIES = ("", "__spear_default_entry__")
HANDLER = (("i32", "i32"), ("i64",))
ALLOC = (("i32",), ("i32",))
FREE = (("i32", "i32"), ())
INITIALIZE: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
MAX_LISTED = 12


class EntryError(Exception):
    """The module has no such entry point, or it has another signature."""


class Entry(NamedTuple):
    """How to call one entry point. The numbers are positions in `exports`; -1 means absent."""

    name: str
    exports: tuple[bytes, ...]
    """What to look up in a new instance; the entry point itself is the first."""
    results: int
    is_function: bool
    """Called with the input in its memory; otherwise without arguments."""
    memory: int
    alloc: int
    free: int
    initialize: int
    reusable: bool
    """Whether one instance may be entered again. `_start` may not (guest ABI, section 1)."""


class LoadedModule:
    """Code in memory, ready to be instantiated any number of times."""

    def __init__(self, host: Host, image: bytes, name: str) -> None:
        """Raises EngineError for an image of another engine, UnsupportedArtifactError for a module
        that imports what is not there."""
        self._lib = host.engine.lib
        self._stream_linker = host.stream_linker
        self._stream_pre = 0
        self._module: CompiledModule | None = host.engine.load(image)
        try:
            imports = self._module.imports()
            self._exports = {export.name: export for export in self._module.exports()}
            for wanted in imports:
                _check_import(name, wanted)
            try:
                self.pre = host.linker.link(self._module)
            except EngineError as exc:
                raise UnsupportedArtifactError(f"{name}: {one_line(str(exc))}") from None
        except BaseException:
            self._module.close()
            raise
        self.uses_wasi = any(wanted.module == _wasi.MODULE for wanted in imports)
        self.stdio_is_payload = not any(
            wanted.module == _hostcalls.MODULE and wanted.name in _hostcalls.PAYLOAD_CALLS
            for wanted in imports
        )
        self._entries: dict[str, Entry] = {}
        self.users = 0
        """Instances that hold on to it."""

    @property
    def stream_pre(self) -> int:
        """What `pre` is for a streamed execution; made when the first one comes."""
        if not self._stream_pre:
            assert self._module is not None
            self._stream_pre = self._stream_linker.link(self._module)
        return self._stream_pre

    def entry(self, name: str) -> Entry:
        """The entry point of this name, empty for the default one. Raises EntryError."""
        entry = self._entries.get(name)
        if entry is None:
            entry = self._find(name)
            self._entries[name] = entry
        return entry

    def close(self) -> None:
        if self._module is not None:
            self._lib.instance_pre_delete(self.pre)
            if self._stream_pre:
                self._lib.instance_pre_delete(self._stream_pre)
            self._module.close()
            self._module = None

    def _find(self, name: str) -> Entry:
        if name in DEFAULT_ENTRIES:
            name = self._default()
        found = self._function(name)
        if found is None:
            listed = ", ".join(self._functions()) or "none"
            raise EntryError(f"it exports no function {name!r}; its functions: {listed}")
        params, results = found
        is_function = found == HANDLER
        if is_function and self._function("spear_alloc") != ALLOC:
            raise EntryError(f"{name!r} takes its input in memory: `spear_alloc` must be exported")
        if (params and not is_function) or len(results) > MAX_RESULTS:
            shape = f"({', '.join(params)}) -> ({', '.join(results)})"
            raise EntryError(f"{name!r} is {shape}; an entry is () -> () or (i32, i32) -> i64")
        return self._plan(name, len(results), is_function)

    def _plan(self, name: str, results: int, is_function: bool) -> Entry:
        exports = [name]

        def place(wanted: str, *, present: bool) -> int:
            if not present:
                return -1
            exports.append(wanted)
            return len(exports) - 1

        memory = self._exports.get("memory")
        has_memory = memory is not None and memory.kind == "memory"
        initialize = name != "_start" and self._function("_initialize") == INITIALIZE
        return Entry(
            name=name,
            results=results,
            is_function=is_function,
            memory=place("memory", present=has_memory),
            alloc=place("spear_alloc", present=is_function),
            free=place("spear_free", present=is_function and self._function("spear_free") == FREE),
            initialize=place("_initialize", present=initialize),
            reusable=name != "_start",
            exports=tuple(text.encode() for text in exports),
        )

    def _default(self) -> str:
        """`_start`, then a function guest's `handle`, then `main`."""
        if self._function("_start") is not None:
            return "_start"
        if self._function("handle") == HANDLER and self._function("spear_alloc") == ALLOC:
            return "handle"
        if self._function("main") is not None:
            return "main"
        if self._function("handle") is not None:
            return "handle"
        listed = ", ".join(self._functions()) or "none"
        raise EntryError(
            f"it has no default entry point (`_start`, `handle` or `main`); its functions: {listed}"
        )

    def _function(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        export = self._exports.get(name)
        return None if export is None else export.signature

    def _functions(self) -> list[str]:
        return [name for name, export in self._exports.items() if _is_function(export)][:MAX_LISTED]


def check_artifact(module: LoadedModule, artifact: Artifact) -> None:
    """Raises UnsupportedArtifactError when its own entry point cannot be called."""
    try:
        module.entry(artifact.entry)
    except EntryError as exc:
        if artifact.entry not in DEFAULT_ENTRIES:
            raise UnsupportedArtifactError(f"{artifact.filename}: {exc}") from None


def _is_function(export: Export) -> bool:
    return export.kind == "func"


def _check_import(name: str, wanted: Import) -> None:
    """What cannot be told from wasmtime's own message: a function of a later version, a typo."""
    module, what, kind, signature = wanted
    if module == _wasi.MODULE:
        return
    if module != _hostcalls.MODULE:
        raise UnsupportedArtifactError(
            f"{name}: it imports `{module}.{what}`; only `{_hostcalls.MODULE}` and"
            f" `{_wasi.MODULE}` are provided"
        )
    call = _hostcalls.HOSTCALLS.get(what)
    if call is None:
        close = difflib.get_close_matches(what, _hostcalls.HOSTCALLS, n=1, cutoff=0.8)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        raise UnsupportedArtifactError(
            f"{name}: it needs host function spear.{what},"
            f" which this version does not provide{hint}"
        )
    if kind != "func" or signature != (call.params, call.results):
        given = _shape(signature) if signature else kind
        raise UnsupportedArtifactError(
            f"{name}: it imports spear.{what} as {given}, but it is"
            f" {_shape((call.params, call.results))}"
        )


def _shape(signature: tuple[tuple[str, ...], tuple[str, ...]]) -> str:
    params, results = signature
    return f"({', '.join(params)}) -> ({', '.join(results)})"
