"""TOML values → attrs instances through cattrs: nothing is coerced, everything wrong is found."""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import cattrs
from cattrs.strategies import configure_union_passthrough

from spear_core._toml_path import field_names, join, kind_of, nearest

__all__ = ["structure"]

_SEQUENCES: tuple[type[Any], ...] = (list, tuple, set, frozenset, Sequence)


class _Invalid(Exception):  # noqa: N818 - carries a list, is never seen outside
    """``(path, what is wrong there)`` of everything wrong in one value."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        super().__init__(problems)
        self.problems = problems


def structure(raw: object, cls: type[Any], path: str) -> tuple[Any, list[str]]:
    """An instance of the attrs class ``cls`` and no problems, or ``None`` and every problem, each
    beginning with its TOML path below ``path``."""
    value, problems = _attempt(lambda: _converter().structure(raw, cls))
    return value, [f"{_below(path, sub)}: {text}" for sub, text in problems]


def _attempt(call: Callable[[], Any], part: str = "") -> tuple[Any, list[tuple[str, str]]]:
    """What ``call`` returns and no problems, or ``None`` and its problems, seen from outside
    ``part``."""
    try:
        return call(), []
    except Exception as exc:  # barrier: a plugin's classes and validators
        return None, [(_below(part, sub), text) for sub, text in _problems(exc)]


def _below(path: str, sub: str) -> str:
    return path + sub if path and sub.startswith("[") else ".".join(p for p in (path, sub) if p)


def _problems(exc: Exception) -> Sequence[tuple[str, str]]:
    if isinstance(exc, _Invalid):
        return exc.problems
    text = exc.args[0] if exc.args and isinstance(exc.args[0], str) else str(exc)
    if isinstance(exc, (ValueError, TypeError)):
        return [("", text)]
    return [("", f"{type(exc).__name__}: {text}")]


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    configure_union_passthrough(str | bool | int | float, converter)
    for cls in (str, bool, int, float):
        converter.register_structure_hook(cls, _exactly)
    converter.register_structure_hook(Path, lambda raw, _: Path(_exactly(raw, str)))
    converter.register_structure_hook(enum.Enum, _enum)
    converter.register_structure_hook_factory(
        lambda cls: _origin(cls) in _SEQUENCES,
        lambda cls: _sequence_hook(converter, cls),
    )
    converter.register_structure_hook_factory(
        lambda cls: _origin(cls) in (dict, Mapping),
        lambda cls: _mapping_hook(converter, cls),
    )
    converter.register_structure_hook_factory(
        attrs.has, lambda cls: _Table(converter, cls).structure
    )
    return converter


def _origin(cls: Any) -> Any:
    return typing.get_origin(cls) or cls


def _exactly(raw: Any, cls: type[Any]) -> Any:
    """A TOML value of just this type; an integer will do for a float."""
    if type(raw) is cls:
        return raw
    if cls is float and type(raw) is int:
        return float(raw)
    raise _Invalid(("", f"expected {cls.__name__}, got {kind_of(raw)}"))


def _enum(raw: Any, cls: type[enum.Enum]) -> enum.Enum:
    for member in cls:
        if type(raw) is type(member.value) and raw == member.value:
            return member
    allowed = ", ".join(repr(member.value) for member in cls)
    raise _Invalid(("", f"must be one of {allowed}, got {raw!r}"))


def _sequence_hook(converter: cattrs.Converter, cls: Any) -> Callable[[Any, Any], Any]:
    origin = _origin(cls)
    make = origin if origin in (list, set, frozenset) else tuple
    arguments = typing.get_args(cls) or (Any,)
    fixed = origin is tuple and arguments[-1] is not Ellipsis and arguments != (Any,)

    def hook(raw: Any, _: Any) -> Any:
        if not isinstance(raw, list):
            raise _Invalid(("", f"expected a list, got {kind_of(raw)}"))
        if fixed and len(raw) != len(arguments):
            raise _Invalid(("", f"expected {len(arguments)} values, got {len(raw)}"))
        kinds = arguments if fixed else (arguments[0],) * len(raw)
        values: list[Any] = []
        problems: list[tuple[str, str]] = []
        for number, (item, kind) in enumerate(zip(raw, kinds, strict=True)):
            value, wrong = _attempt(partial(converter.structure, item, kind), f"[{number}]")
            values.append(value)
            problems += wrong
        if problems:
            raise _Invalid(*problems)
        return make(values)

    return hook


def _mapping_hook(converter: cattrs.Converter, cls: Any) -> Callable[[Any, Any], Any]:
    kind = (typing.get_args(cls) or (str, Any))[1]

    def hook(raw: Any, _: Any) -> dict[str, Any]:
        if not isinstance(raw, dict):
            raise _Invalid(("", f"expected a table, got {kind_of(raw)}"))
        values: dict[str, Any] = {}
        problems: list[tuple[str, str]] = []
        for key, item in raw.items():
            part = join("", key)
            values[key], wrong = _attempt(partial(converter.structure, item, kind), part)
            problems += wrong
        if problems:
            raise _Invalid(*problems)
        return values

    return hook


class _Table:
    """Structures one table as one attrs class."""

    def __init__(self, converter: cattrs.Converter, cls: type[Any]) -> None:
        self._converter = converter
        self._cls: Callable[..., Any] = attrs.resolve_types(cls)
        self._fields = field_names(cls)

    def structure(self, raw: Any, _: Any) -> Any:
        if not isinstance(raw, dict):
            raise _Invalid(("", f"expected a table, got {kind_of(raw)}"))
        problems: list[tuple[str, str]] = []
        values: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in self._fields:
                problems.append((join("", key), f"unknown key{nearest(key, self._fields)}"))
                continue
            kind: Any = self._fields[key].type or Any
            made, wrong = _attempt(partial(self._converter.structure, value, kind), join("", key))
            problems += wrong
            if not wrong:
                values[key] = made
        required = [k for k, field in self._fields.items() if field.default is attrs.NOTHING]
        problems += [(key, "required, and not set") for key in required if key not in raw]
        if not problems:
            made, problems = _attempt(lambda: self._cls(**values))
            if not problems:
                return made
        if all(key in values for key in required):
            one_by_one = self._refused({k: values[k] for k in required}, values)
            problems = [p for p in problems if p[0] or not one_by_one] + one_by_one
        raise _Invalid(*problems)

    def _refused(
        self, required: Mapping[str, Any], values: Mapping[str, Any]
    ) -> list[tuple[str, str]]:
        """attrs stops at the first validator that objects, so each value is tried by itself."""
        _, problems = _attempt(lambda: self._cls(**required), "".join(list(required)[:1]))
        if problems:
            return [(key, self._plain(key, text)) for key, text in problems]
        for key in values.keys() - required.keys():
            _, wrong = _attempt(partial(self._cls, **required, **{key: values[key]}), key)
            problems += [(path, self._plain(key, text)) for path, text in wrong]
        return sorted(problems)

    def _plain(self, key: str, text: str) -> str:
        """attrs' validators begin with the field's name, which the path has said already."""
        return text.removeprefix(f"'{self._fields[key].name}' ") if key in self._fields else text
