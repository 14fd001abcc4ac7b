"""Finding, checking and loading plugins.

Our own loader over ``importlib.metadata`` and pluggy: pluggy's stops at the first ImportError and
drops a second plugin of one name silently. A plugin is taken whole or not at all, and every
refusal is one line that names the plugin, its distribution and what to do.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import pluggy

from spear_core import hookspecs
from spear_core._marks import PROJECT
from spear_core._plugin_checks import module_problem, spec_names, spec_problem
from spear_core._toml_path import nearest
from spear_core.api import (
    FrontDoorSpec,
    HostcallSpec,
    MetadataStoreSpec,
    ObjectStoreSpec,
    RuntimeSpec,
    SchedulerSpec,
    TracerSpec,
    TransportSpec,
)
from spear_core.errors import PluginError

if TYPE_CHECKING:
    import click

__all__ = [
    "BUILTINS",
    "GROUP",
    "LoadedPlugin",
    "Owned",
    "Plugins",
    "load_plugins",
    "suggest_distribution",
]

GROUP = "spear"
"""The entry point group that plugins declare themselves in."""

BUILTINS = "builtins"
"""Entry point name of the core's own plugin, which is always loaded."""

S = TypeVar("S")

_SPECS: Mapping[str, tuple[str, type[Any]]] = {
    "spear_runtimes": ("runtime", RuntimeSpec),
    "spear_transports": ("transport", TransportSpec),
    "spear_object_stores": ("object store", ObjectStoreSpec),
    "spear_metadata_stores": ("metadata store", MetadataStoreSpec),
    "spear_schedulers": ("scheduler", SchedulerSpec),
    "spear_hostcalls": ("hostcall", HostcallSpec),
    "spear_front_doors": ("front door", FrontDoorSpec),
    "spear_tracers": ("tracer", TracerSpec),
}
"""Hook → what its specs are called in messages, and their class."""

_SCHEME = "front door for the URL scheme"

_DISTRIBUTIONS: Mapping[str, str] = {
    "process": "spear-runtime-process",
    ".py": "spear-runtime-process",
    ".sh": "spear-runtime-process",
    "wasm": "spear-runtime-wasm",
    ".wasm": "spear-runtime-wasm",
    ".wat": "spear-runtime-wasm",
    "unix": "spear-transport-unix",
    "tcp": "spear-transport-unix",
}
"""Runtime, transport or file suffix → the distribution of ours that provides it."""


def suggest_distribution(what: str | Path) -> str | None:
    """The distribution to install for a runtime, a transport or a file, if it is one of ours.

    :param what: a name such as ``wasm``, or a file's path, of which only the suffix counts.
    """
    return _DISTRIBUTIONS.get(str(what)) or _DISTRIBUTIONS.get(Path(what).suffix.lower())


@attrs.frozen
class Owned(Generic[S]):
    """A spec and the plugin that declared it."""

    spec: S
    plugin_name: str
    """Entry point name, which is also the name of its configuration section."""


@attrs.frozen(kw_only=True)
class LoadedPlugin:
    """An installed plugin and what became of it."""

    name: str
    """Entry point name, such as ``runtime-wasm``."""
    distribution: str
    version: str
    provides: tuple[str, ...] = ()
    """``runtime:wasm``, ``transport:unix``, ``object-store:memory``, …, ``commands``."""
    state: str = "loaded"
    """``loaded``; ``skipped``: not among those asked for; ``failed``."""
    reason: str = ""
    """Why it is not loaded; one line, empty when it is."""


@attrs.frozen(kw_only=True)
class Plugins:
    """What is installed and usable; made by :func:`load_plugins`.

    Each mapping goes from a name (of a runtime, a transport, a hostcall, …) to the spec and the
    plugin it came from.
    """

    plugins: tuple[LoadedPlugin, ...]
    """Every installed plugin, the core's own first, then by name."""
    runtimes: Mapping[str, Owned[RuntimeSpec[Any]]]
    transports: Mapping[str, Owned[TransportSpec[Any]]]
    object_stores: Mapping[str, Owned[ObjectStoreSpec[Any]]]
    metadata_stores: Mapping[str, Owned[MetadataStoreSpec[Any]]]
    schedulers: Mapping[str, Owned[SchedulerSpec[Any]]]
    hostcalls: Mapping[str, Owned[HostcallSpec[Any]]]
    """By hostcall name; a spec appears once for each of its names."""
    front_doors: Mapping[str, Owned[FrontDoorSpec[Any]]]
    tracers: Mapping[str, Owned[TracerSpec[Any]]]
    _manager: pluggy.PluginManager = attrs.field(repr=False, eq=False, alias="manager")

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each plugin that is installed and cannot be used."""
        return tuple(p.reason for p in self.plugins if p.state == "failed")

    def config_classes(self) -> Mapping[str, tuple[type[Any], ...]]:
        """Entry point name → the configuration classes of its specs, each once, in hook order.

        A loaded plugin without settings has an empty tuple; one that is not loaded is absent.
        """
        classes: dict[str, dict[type[Any], None]] = {
            p.name: {} for p in self.plugins if p.state == "loaded"
        }
        kinds: tuple[Mapping[str, Owned[Any]], ...] = (
            self.runtimes,
            self.transports,
            self.object_stores,
            self.metadata_stores,
            self.schedulers,
            self.hostcalls,
            self.front_doors,
            self.tracers,
        )
        for kind in kinds:
            for owned in kind.values():
                classes[owned.plugin_name][owned.spec.config_cls] = None
        return {name: tuple(found) for name, found in classes.items()}

    def inactive(self) -> Mapping[str, str]:
        """Entry point name → ``skipped`` or the failure, for plugins that are not loaded."""
        return {p.name: p.reason for p in self.plugins if p.state != "loaded"}

    def choose_transport(self, runtime: str, offered: Sequence[str]) -> str | None:
        """Ask the plugins which transport a runtime's instances should use.

        ``None``: nobody has an opinion, so the order of ``offered`` counts. **Raises**
        :exc:`~spear_core.errors.PluginError` when a plugin fails or names one that is not offered.
        """
        arguments = {"runtime": runtime, "offered": tuple(offered)}
        for owner, call in self._calls("spear_choose_transport", arguments):
            choice = _guarded(owner, "spear_choose_transport", call)
            if choice is None:
                continue
            if choice not in offered:
                raise PluginError(
                    f"plugin {owner} chose the transport {choice!r} for runtime {runtime!r}, "
                    f"which is not one of {', '.join(offered) or 'none'}"
                )
            return str(choice)
        return None

    def add_commands(self, cli: click.Group) -> tuple[str, ...]:
        """Let every plugin add its commands; one line for each that failed.

        A plugin that raises, or replaces a command that is there already, adds nothing.
        """
        problems = []
        for owner, call in self._calls("spear_commands", {"cli": cli}):
            before = dict(cli.commands)
            try:
                _guarded(owner, "spear_commands", call)
                if taken := [
                    name for name, was in before.items() if cli.commands.get(name) is not was
                ]:
                    raise PluginError(
                        f"plugin {owner} replaces the command {', '.join(map(repr, taken))}; "
                        f"a plugin may only add commands"
                    )
            except PluginError as exc:
                problems.append(exc.message)
                cli.commands.clear()
                cli.commands.update(before)
        return tuple(problems)

    def _calls(
        self, hook: str, arguments: Mapping[str, object]
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        for impl in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            values = [arguments[name] for name in impl.argnames]
            yield repr(impl.plugin_name), functools.partial(impl.function, *values)


@attrs.frozen(kw_only=True)
class _Candidate:
    """An entry point and the distribution it came from."""

    name: str
    distribution: str
    version: str
    entry: importlib.metadata.EntryPoint

    def __str__(self) -> str:
        return f"{self.name!r} ({self.distribution} {self.version})"


def _scan() -> list[_Candidate]:
    found = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        distribution, version = _identify(entry)
        found.append(
            _Candidate(name=entry.name, distribution=distribution, version=version, entry=entry)
        )
    return sorted(found, key=lambda c: (c.name != BUILTINS, c.name, c.distribution))


def _identify(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Name and version, without the e-mail parser that ``Distribution.metadata`` goes through: it
    takes about a millisecond for each long README."""
    text = (entry.dist.read_text("METADATA") if entry.dist else None) or ""
    header = text.partition("\n\n")[0]
    values = dict(re.findall(r"^(Name|Version): *(.*?) *$", header, re.MULTILINE))
    return values.get("Name", "unknown distribution"), values.get("Version", "unknown version")


def _normal(name: str) -> str:
    """A distribution name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _select(only: Sequence[str], candidates: Sequence[_Candidate]) -> set[str]:
    """Entry point names that ``only`` stands for; a name that stands for nothing is fatal."""
    chosen: set[str] = set()
    for word in only:
        matches = (
            {c.name for c in candidates if c.name == word}
            or {c.name for c in candidates if _normal(c.distribution) == _normal(word)}
            or {c.name for c in candidates if c.name.partition("-")[2] == word}
        )
        if not matches:
            names = [c.name for c in candidates]
            distribution = suggest_distribution(word)
            install = f"; pip install {distribution} provides it" if distribution else ""
            raise PluginError(
                f"no plugin {word!r} is installed{install or nearest(word, names)} "
                f"(installed: {', '.join(dict.fromkeys(names))})",
                code="invalid_argument",
            )
        if len(matches) > 1 and not any(
            _normal(c.distribution) == _normal(word) for c in candidates
        ):
            raise PluginError(
                f"{word!r} could be any of the plugins {', '.join(sorted(matches))}; "
                f"use the full name",
                code="invalid_argument",
            )
        chosen |= matches
    return chosen


def load_plugins(only: Sequence[str] | None = None) -> Plugins:
    """Load the installed plugins: import their modules, call their hooks, check what they declare.

    :param only: load these and the core's own alone. Each is an entry point name
        (``runtime-wasm``), a distribution name (``spear-runtime-wasm``) or the last part of the
        entry point name (``wasm``).

    Without ``only`` a plugin that fails is listed as ``failed``, with the reason, and the others
    load. **Raises** :exc:`~spear_core.errors.PluginError` when ``only`` names one that fails or
    is not installed, or when the core's own plugin fails.
    """
    candidates = _scan()
    chosen = None if only is None else _select(only, candidates)
    loading = _Loading()
    for candidate in candidates:
        if chosen is not None and candidate.name not in chosen | {BUILTINS}:
            loading.skip(candidate)
            continue
        try:
            _refuse_duplicate(candidate, candidates)
            loading.load(candidate)
        except PluginError as exc:
            ours = candidate.name == BUILTINS and _normal(candidate.distribution) == "spear-core"
            if ours or (chosen is not None and candidate.name in chosen):
                raise
            loading.fail(candidate, exc.message)
    return loading.result()


def _refuse_duplicate(candidate: _Candidate, candidates: Sequence[_Candidate]) -> None:
    if candidate.name == BUILTINS and _normal(candidate.distribution) == "spear-core":
        return
    others = [c for c in candidates if c.name == candidate.name and c is not candidate]
    if others:
        both = ", ".join(f"{c.distribution} {c.version}" for c in (candidate, *others))
        raise PluginError(
            f"plugin {candidate.name!r} is provided by more than one distribution ({both}); "
            f"uninstall all but one"
        )


class _Loading:
    """Collects what the plugins declare; a plugin's part is added whole or not at all."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._listed: list[LoadedPlugin] = []
        self._specs: dict[str, dict[str, Owned[Any]]] = {kind: {} for kind, _ in _SPECS.values()}
        self._schemes: dict[str, Owned[Any]] = {}

    def skip(self, candidate: _Candidate) -> None:
        self._list(candidate, state="skipped", reason="not among the plugins asked for")

    def fail(self, candidate: _Candidate, reason: str) -> None:
        self._list(candidate, state="failed", reason=reason)

    def _list(self, candidate: _Candidate, **rest: Any) -> None:
        self._listed.append(
            LoadedPlugin(
                name=candidate.name,
                distribution=candidate.distribution,
                version=candidate.version,
                **rest,
            )
        )

    def load(self, candidate: _Candidate) -> None:
        module = _import(candidate)
        if problem := module_problem(module, candidate.entry.value):
            raise PluginError(f"plugin {candidate}: {problem}")
        try:
            self._manager.register(module, name=candidate.name)
        except (pluggy.PluginValidationError, ValueError) as exc:
            if self._manager.has_plugin(candidate.name):
                self._manager.unregister(name=candidate.name)
            raise PluginError(f"plugin {candidate}: {_one_line(exc)}") from exc
        try:
            found = self._declared(candidate)
        except PluginError:
            self._manager.unregister(name=candidate.name)
            raise
        for kind, name, spec in found:
            self._table(kind)[name] = Owned(spec, candidate.name)
        provides = [
            f"{kind.replace(' ', '-')}:{name}" for kind, name, _ in found if kind != _SCHEME
        ]
        if any(c.name == "spear_commands" for c in self._callers(candidate)):
            provides.append("commands")
        self._list(candidate, provides=tuple(provides))

    def _table(self, kind: str) -> dict[str, Owned[Any]]:
        return self._schemes if kind == _SCHEME else self._specs[kind]

    def _callers(self, candidate: _Candidate) -> list[pluggy.HookCaller]:
        plugin = self._manager.get_plugin(candidate.name)
        return self._manager.get_hookcallers(plugin) or []

    def _declared(self, candidate: _Candidate) -> list[tuple[str, str, Any]]:
        """``(kind, name, spec)`` of everything this plugin declares, checked."""
        found: list[tuple[str, str, Any]] = []
        for caller in self._callers(candidate):
            if caller.name not in _SPECS:
                continue
            kind, cls = _SPECS[caller.name]
            for impl in caller.get_hookimpls():
                if impl.plugin_name != candidate.name:
                    continue
                declare = functools.partial(_listed, caller.name, cls, impl.function)
                for spec in _guarded(str(candidate), caller.name, declare):
                    if problem := spec_problem(cls, spec):
                        raise PluginError(f"plugin {candidate}: the hook {caller.name} {problem}")
                    found += [(*key, spec) for key in _keys(kind, spec)]
        self._refuse_taken(candidate, [(kind, name) for kind, name, _ in found])
        return found

    def _refuse_taken(self, candidate: _Candidate, keys: Sequence[tuple[str, str]]) -> None:
        for number, (kind, name) in enumerate(keys):
            owner = self._table(kind).get(name)
            if owner or (kind, name) in keys[:number]:
                other = repr(owner.plugin_name) if owner else "itself"
                raise PluginError(
                    f"plugin {candidate}: the {kind} {name!r} is already provided by plugin "
                    f"{other}; uninstall one of the two, or choose with --plugins"
                )

    def result(self) -> Plugins:
        specs = {kind: MappingProxyType(found) for kind, found in self._specs.items()}
        return Plugins(
            plugins=tuple(self._listed),
            runtimes=specs["runtime"],
            transports=specs["transport"],
            object_stores=specs["object store"],
            metadata_stores=specs["metadata store"],
            schedulers=specs["scheduler"],
            hostcalls=specs["hostcall"],
            front_doors=specs["front door"],
            tracers=specs["tracer"],
            manager=self._manager,
        )


def _import(candidate: _Candidate) -> Any:
    try:
        return candidate.entry.load()
    except (Exception, SystemExit) as exc:  # barrier: one plugin's import
        raise PluginError(
            f"plugin {candidate}: importing {candidate.entry.value} failed: {_one_line(exc)}"
        ) from exc


def _one_line(exc: BaseException) -> str:
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def _guarded(owner: str, hook: str, call: Callable[[], S]) -> S:
    try:
        return call()
    except PluginError as exc:
        raise PluginError(f"plugin {owner}: {exc.message}") from exc
    except (Exception, SystemExit) as exc:  # barrier: one plugin's hook
        raise PluginError(f"plugin {owner}: the hook {hook} raised {_one_line(exc)}") from exc


def _listed(hook: str, cls: type[Any], function: Callable[[], Any]) -> list[Any]:
    """What a hook returned, as a list. Generators run here, so that what they raise is theirs."""
    result = function()
    if isinstance(result, cls):
        raise PluginError(f"the hook {hook} returned one {cls.__name__}; yield it or return a list")
    return [] if result is None else list(result)


def _keys(kind: str, spec: Any) -> list[tuple[str, str]]:
    """Under which names a spec goes into which table."""
    schemes = spec.schemes if isinstance(spec, FrontDoorSpec) else ()
    return [*((kind, name) for name in sorted(spec_names(spec))), *((_SCHEME, s) for s in schemes)]
