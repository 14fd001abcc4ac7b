"""The decorator that marks functions."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal, TypeVar, overload

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["Marks", "function", "marks_of"]

_ATTRIBUTE = "__spear_function__"
_BACKENDS = ("asyncio", "trio")


class Marks:
    """What the decorator was told about a function."""

    __slots__ = ("backend", "name")

    def __init__(self, *, name: str, backend: str) -> None:
        self.name = name
        self.backend = backend


def marks_of(value: object) -> Marks | None:
    """What the decorator was told about this function; None when it isn't decorated."""
    marks = getattr(value, _ATTRIBUTE, None)
    return marks if isinstance(marks, Marks) else None


if TYPE_CHECKING:

    @overload
    def function(fn: F, /) -> F: ...

    @overload
    def function(
        *, name: str = "", backend: Literal["asyncio", "trio"] = "asyncio"
    ) -> Callable[[F], F]: ...


def function(
    fn: F | None = None, /, *, name: str = "", backend: str = "asyncio"
) -> F | Callable[[F], F]:
    """Mark a sync or async function as one that SPEAR may call; it stays what it is.

    ::

        @function
        def greet(name: str) -> str:
            return f"Hello, {name}!"

    :param name: the entry callers use; by default the function's own name.
    :param backend: the event loop for an async function, ``asyncio`` or ``trio``.

    Raises: ValueError for an unknown backend, TypeError when applied to anything not callable.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend={backend!r}: there are {' and '.join(_BACKENDS)}")

    def mark(target: F) -> F:
        if not callable(target):
            raise TypeError(f"@function is for functions, not for {target!r}")
        own_name = name or getattr(target, "__name__", "")
        if not own_name:
            raise TypeError(f"{target!r} has no name of its own; write @function(name=…)")
        setattr(target, _ATTRIBUTE, Marks(name=own_name, backend=backend))
        return target

    return mark if fn is None else mark(fn)
