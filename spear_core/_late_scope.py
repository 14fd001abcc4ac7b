"""Entering a cancel scope only when there is something to cancel."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import trio

__all__ = ["run_in_scope"]


async def run_in_scope(
    work: Coroutine[Any, Any, None], open_scope: Callable[[], trio.CancelScope]
) -> None:
    """Run ``work``, from its first wait on in the scope that ``open_scope`` makes.

    What never waits cannot be cancelled, and a scope of its own would cost more than a small
    execution. The price: the first wait must be in no scope and no nursery that ``work`` itself
    has entered before, or trio's stack of scopes would end in disorder (it raises ``RuntimeError``
    then). Whoever is about to enter one, and may be the first to wait, begins with a checkpoint.

    **Cancellation**: none is taken before the first wait.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return
    with open_scope():
        await _go_on(work, awaited)


@types.coroutine
def _go_on(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine that waits for ``awaited``."""
    try:
        while True:
            try:
                answer = yield awaited
            except BaseException as error:  # barrier: thrown in, so it is the coroutine's to have
                awaited = work.throw(error)
            else:
                awaited = work.send(answer)
    except StopIteration:
        return
