"""Checks on an installed plugin as a whole: what the loader wants of it, and good manners."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from spear_core._toml_path import field_names
from spear_core.api import Capability, RuntimeSpec
from spear_core.config import load_config
from spear_core.errors import ConfigError, PluginError
from spear_core.plugins import GROUP, Owned, Plugins, load_plugins

__all__ = ["Problem", "assert_plugin_ok", "check_plugin"]

_IMPORT_BUDGET_S = 30.0

_ASK_IMPORTS = """
import sys
from spear_core.plugins import load_plugins
load_plugins([sys.argv[1]])
print("\\n".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""

_OPENERS = ("open", "make", "connect", "recognise")


@attrs.frozen(kw_only=True)
class Problem:
    """One thing that is wrong with a plugin."""

    where: str
    """``entry point``, ``load``, ``config``, ``imports``, or the spec: ``runtime:wasm``."""
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def check_plugin(entry_point_name: str, *, engines: tuple[str, ...] = ()) -> list[Problem]:
    """Everything that is wrong with an installed plugin, found without opening anything.

    :param entry_point_name: its name in the group ``spear``: ``runtime-wasm``.
    :param engines: import names of the heavy packages it drives. Loading the plugin must not
        import them: ``("wasmtime",)``.

    It is loaded alone, as ``spear node --plugins NAME`` does, so everything that the loader
    refuses is found. Then the parts are looked at: every spec's configuration class has defaults
    for everything, what opens it has the right shape, capabilities and reusable shapes agree.
    """
    named = [e for e in importlib.metadata.entry_points(group=GROUP) if e.name == entry_point_name]
    if not named:
        message = f"no distribution declares {entry_point_name!r} in the group {GROUP!r}"
        return [Problem(where="entry point", message=message)]
    try:
        plugins = load_plugins([entry_point_name])
    except PluginError as exc:
        return [Problem(where="load", message=exc.message)]
    return [
        *_config_problems(entry_point_name, plugins),
        *_spec_problems(entry_point_name, plugins),
        *_import_problems(entry_point_name, engines),
    ]


def assert_plugin_ok(entry_point_name: str, *, engines: tuple[str, ...] = ()) -> None:
    """Fail, with every problem of :func:`check_plugin` on a line, if there is one."""
    problems = check_plugin(entry_point_name, engines=engines)
    lines = "".join(f"\n  {problem}" for problem in problems)
    assert not problems, f"plugin {entry_point_name!r} is not in order:{lines}"


def _config_problems(name: str, plugins: Plugins) -> Iterator[Problem]:
    try:
        load_config(None, plugins)
    except ConfigError as exc:
        yield from (Problem(where="config", message=f"no default: {p}") for p in exc.problems)
    for cls in plugins.config_classes()[name]:
        if cls.__setattr__.__name__ != "_frozen_setattrs":
            message = f"{cls.__name__} is not frozen; settings are values: @attrs.frozen"
            yield Problem(where="config", message=message)
        try:
            attrs.resolve_types(cls)
        except NameError as exc:
            message = f"{cls.__name__} has a type that exists for the type checker only: {exc}"
            yield Problem(where="config", message=message)
            continue
        untyped = [key for key, field in field_names(cls).items() if field.type is None]
        if untyped:
            message = f"{cls.__name__} has fields without a type: {', '.join(untyped)}"
            yield Problem(where="config", message=message)


def _owned(name: str, plugins: Plugins) -> Iterator[tuple[str, Any]]:
    kinds: Mapping[str, Mapping[str, Owned[Any]]] = {
        "runtime": plugins.runtimes,
        "transport": plugins.transports,
        "object-store": plugins.object_stores,
        "metadata-store": plugins.metadata_stores,
        "scheduler": plugins.schedulers,
        "hostcall": plugins.hostcalls,
        "front-door": plugins.front_doors,
    }
    for kind, found in kinds.items():
        for key, owned in found.items():
            if owned.plugin_name == name:
                yield f"{kind}:{key}", owned.spec


def _spec_problems(name: str, plugins: Plugins) -> Iterator[Problem]:
    for where, spec in _owned(name, plugins):
        for opener in _OPENERS:
            if not hasattr(spec, opener):
                continue
            function = getattr(spec, opener)
            if not callable(function):
                yield Problem(where=where, message=f"{opener} is not callable: {function!r}")
            elif inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                yield Problem(where=where, message=_not_async(opener))
        if not isinstance(getattr(spec, "capabilities", frozenset()), frozenset):
            yield Problem(where=where, message="capabilities is not a frozenset")
        if isinstance(spec, RuntimeSpec):
            yield from _runtime_problems(where, spec)


def _not_async(opener: str) -> str:
    if opener in ("open", "connect"):
        return (
            f"{opener} is an async function; it returns an async context manager (put "
            "@asynccontextmanager above it)"
        )
    return f"{opener} is an async function; it is called and not awaited"


def _runtime_problems(where: str, spec: Any) -> Iterator[Problem]:
    if spec.reusable_shapes and Capability.REUSE not in spec.capabilities:
        yield Problem(where=where, message="reusable_shapes without Capability.REUSE")
    if isinstance(spec.transports, str):
        yield Problem(where=where, message="transports is a string, where a tuple of names belongs")
    if inspect.iscoroutinefunction(spec.recognise):
        return
    try:
        shape = spec.recognise(Path("no such file.spear-check"), b"\x00", "")
    except Exception as exc:  # barrier: the plugin's own function
        yield Problem(where=where, message=f"recognise raised {type(exc).__name__}: {exc}")
    else:
        if shape is not None:
            yield Problem(where=where, message=f"recognise takes any file: it said {shape!r}")


def _import_problems(name: str, engines: tuple[str, ...]) -> Iterator[Problem]:
    """Look from a fresh interpreter: this one may have imported anything."""
    if not engines:
        return
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_IMPORTS, name],
        capture_output=True,
        text=True,
        timeout=_IMPORT_BUDGET_S,
        check=False,
    )
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield Problem(where="imports", message=f"it does not load in a fresh interpreter: {last}")
    for engine in sorted(set(engines) & set(asked.stdout.split())):
        message = f"loading the plugin imports {engine}; import it where the spec is opened"
        yield Problem(where="imports", message=message)
