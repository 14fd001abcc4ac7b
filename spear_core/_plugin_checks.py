"""What a plugin declares, looked at before it is believed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from spear_core import hookspecs
from spear_core._marks import PROJECT
from spear_core._toml_path import nearest
from spear_core.api import API_VERSION, HostcallSpec

__all__ = ["module_problem", "spec_names", "spec_problem"]

_ADVICE = "@hookimpl (from spear_core import hookimpl)"


def module_problem(module: Any, where: str) -> str:
    """What is wrong with the hooks of a plugin's module that pluggy would take silently or report
    in its own words; empty when nothing is.

    :param where: the module as the entry point names it.
    """
    declared = 0
    for name, function in inspect.getmembers(module, inspect.isroutine):
        options = getattr(function, f"{PROJECT}_impl", None)
        if options is not None:
            declared += 1
            if problem := _hook_problem(options.get("specname") or name, function, options):
                return problem
        elif name in hookspecs.__all__:
            return f"{name} is not marked; put above it {_ADVICE}"
    return "" if declared else f"{where} has no hook; mark its functions with {_ADVICE}"


def _hook_problem(hook: str, function: Callable[..., Any], options: Mapping[str, Any]) -> str:
    if hook not in hookspecs.__all__:
        return f"there is no hook {hook!r}{nearest(hook, hookspecs.__all__)}"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return f"the hook {hook} is async; a hook is an ordinary function that returns specs"
    if options.get("wrapper") or options.get("hookwrapper"):
        return f"the hook {hook} is a wrapper; a plugin may only add, not wrap others"
    return ""


def spec_problem(cls: type[Any], spec: Any) -> str:
    """What is wrong with one thing that a hook returned; empty when nothing is."""
    if not isinstance(spec, cls):
        return f"returned a {type(spec).__name__} where a {cls.__name__} belongs"
    names = spec_names(spec)
    if not names or not all(isinstance(name, str) and name for name in names):
        return f"returned a {cls.__name__} without a name"
    label = ", ".join(map(repr, names))
    version: object = spec.api
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        return f"declared {label} for interface version {version!r}, which is no version"
    if version > API_VERSION:
        return (
            f"declared {label} for interface version {version}, and this spear-core speaks "
            f"{API_VERSION}; upgrade spear-core"
        )
    if not (isinstance(spec.config_cls, type) and attrs.has(spec.config_cls)):
        return f"declared {label} with config_cls={spec.config_cls!r}, which is no attrs class"
    return ""


def spec_names(spec: Any) -> list[Any]:
    """The names that a spec claims."""
    return list(spec.names) if isinstance(spec, HostcallSpec) else [spec.name]
