"""Loads the user's file as a module and finds the functions in it."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec

from spear_sdk._errors import EntryNotFoundError
from spear_sdk._function import marks_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType

__all__ = ["add_packages", "find_entry", "load_module"]

_DEFAULTS = ("main", "handle", "handler")


class _Loader:
    """Knows the source, so that tracebacks show it under the name the user gave the file."""

    def __init__(self, path: str, shown_as: str) -> None:
        self._path = path
        self._shown_as = shown_as
        self._source = ""

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the file."""
        with open(self._path, "rb") as file:
            data = file.read()
        code: CodeType = compile(data, self._shown_as, "exec", dont_inherit=True)
        self._source = _decode(data)
        exec(code, module.__dict__)

    def get_source(self, name: str) -> str:
        """For linecache, and with it for tracebacks and inspect."""
        return self._source


def _decode(data: bytes) -> str:
    if data.isascii():
        return data.decode()
    from importlib.util import decode_source

    return decode_source(data)


def add_packages(directory: str) -> None:
    """Let installed packages be found, before those that came with the interpreter.

    What their `.pth` files ask for is done, as for any directory of packages.
    """
    import site

    before = list(sys.path)
    site.addsitedir(directory)
    new = [path for path in sys.path if path not in before]
    names = [os.path.basename(path) for path in before]
    at = min(
        (names.index(name) for name in ("site-packages", "dist-packages") if name in names),
        default=len(before),
    )
    sys.path[:] = before[:at] + new + before[at:]


def load_module(path: str, shown_as: str = "", root: str = "") -> ModuleType:
    """Import a file under a module name of its own, its directory first on the path.

    With `root`, the directory of its bundle, that comes before its own. A file in a package of the
    bundle is imported as a part of it, so that relative imports work.

    Raises: whatever the file's code raises.
    """
    from importlib.util import module_from_spec

    shown_as = shown_as or os.path.basename(path)
    directory = os.path.dirname(os.path.abspath(path))
    for place in (directory, root):
        if place and sys.path[:1] != [place]:
            sys.path.insert(0, place)
    name = _name_in_package(path, root) or _module_name(shown_as)
    loader = _Loader(path, shown_as)
    spec = ModuleSpec(name, loader, origin=os.path.abspath(path))  # type: ignore[arg-type]
    spec.has_location = True
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return sys.modules.get(name, module)


def _name_in_package(path: str, root: str) -> str:
    """`package.module` for a file of a package below `root`, which is imported; else empty."""
    if not root:
        return ""
    parts = os.path.relpath(os.path.splitext(path)[0], root).split(os.sep)
    packages = [os.path.join(root, *parts[:end]) for end in range(1, len(parts))]
    if not packages or not all(part.isidentifier() for part in parts):
        return ""
    if not all(os.path.exists(os.path.join(package, "__init__.py")) for package in packages):
        return ""
    from importlib import import_module

    import_module(".".join(parts[:-1]))
    return ".".join(parts)


def _module_name(shown_as: str) -> str:
    stem = os.path.basename(shown_as).partition(".")[0]
    name = "".join(c if c.isalnum() or c == "_" else "_" for c in stem)
    if not name.isidentifier() or name in sys.stdlib_module_names or name in sys.modules:
        name = f"spear_function_{name}"
    return name


def find_entry(module: ModuleType, entry: str, shown_as: str) -> object:
    """The function called `entry`, or the module's default one when that is empty.

    Raises: EntryNotFoundError that lists what there is.
    """
    decorated = {marks.name: value for value in vars(module).values() if (marks := marks_of(value))}
    if entry:
        return _named(module, entry, decorated, shown_as)
    own = {
        name: value
        for name, value in decorated.items()
        if getattr(value, "__module__", None) == module.__name__
    }
    candidates = own or decorated
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    for name in _DEFAULTS:
        if name in candidates:
            return candidates[name]
    if candidates:
        names = ", ".join(sorted(candidates))
        raise EntryNotFoundError(
            f"{shown_as} has several functions ({names}): say which one, as {shown_as}:NAME"
        )
    for name in _DEFAULTS:
        if callable(value := getattr(module, name, None)):
            return value
    raise EntryNotFoundError(
        f"{shown_as} has no function: decorate one with @spear_sdk.function, or call it main"
    )


def _named(module: ModuleType, entry: str, decorated: dict[str, object], shown_as: str) -> object:
    value: object = decorated.get(entry)
    if value is None:
        value = module
        for part in entry.split("."):
            value = getattr(value, part, None)
    if callable(value):
        return value
    if value is not None:
        raise EntryNotFoundError(f"{entry!r} in {shown_as} is no function")
    names = sorted(decorated) or sorted(
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    )
    has = f"it has {', '.join(names)}" if names else "it has none"
    raise EntryNotFoundError(f"{shown_as} has no function {entry!r}; {has}")
