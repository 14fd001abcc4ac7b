"""How a test of a contract suite is marked and bounded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import pytest
import trio

__all__ = ["promise"]

P = ParamSpec("P")


class _Suite(Protocol):
    patience: float


S = TypeVar("S", bound=_Suite)


def promise(
    test: Callable[Concatenate[S, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, None]]:
    """Mark an async test of a suite: run by pytest-trio, and given ``patience`` seconds.

    Without the bound a plugin that hangs would hang the whole run. Works with and without
    pytest-trio's ``trio_mode``.
    """

    @functools.wraps(test)
    async def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        with trio.move_on_after(self.patience) as scope:
            await test(self, *args, **kwargs)
        if scope.cancelled_caught:
            pytest.fail(f"still waiting after {self.patience:g} s (patience)")

    return cast(Callable[Concatenate[S, P], Coroutine[Any, Any, None]], pytest.mark.trio(bounded))
