"""Waiting in asyncio for what runs in the trio thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Self, TypeVar

from spear_core.client._face import Face, Pieces
from spear_core.client._thread import Job, TrioThread

__all__ = ["AioFace", "AioPieces", "block", "finished", "outcome"]

T = TypeVar("T")
V = TypeVar("V")


async def finished(future: Future[T]) -> T:
    """Wait for the end; being cancelled leaves it alone."""
    mirror = asyncio.wrap_future(future)
    try:
        await asyncio.wait([mirror])
    finally:
        if mirror.done() and not mirror.cancelled():
            mirror.exception()  # it is seen, whether anybody asks for it or not
    return mirror.result()


async def outcome(job: Job[T]) -> T:
    """Wait for the end; being cancelled cancels the job, and waits until it has stopped."""
    mirror = asyncio.wrap_future(job.future)
    try:
        await asyncio.wait([mirror])
    except asyncio.CancelledError:
        job.cancel()
        await asyncio.wait([mirror])
        raise
    finally:
        if mirror.done() and not mirror.cancelled():
            mirror.exception()  # it is seen, whether anybody asks for it or not
    return mirror.result()


@asynccontextmanager
async def block(
    make: Callable[[], AbstractAsyncContextManager[T]],
    thread: TrioThread,
    face: Callable[[T, TrioThread], V],
) -> AsyncIterator[V]:
    """A block of trio's, entered and left from here."""
    held = await outcome(thread.hold(make()))
    try:
        yield face(held.value, thread)
    finally:
        await finished(held.leave())


class AioFace(Face[T]):
    """Something of trio's, for asyncio."""

    async def _do(self, work: Callable[[], Awaitable[V]]) -> V:
        return await outcome(self._thread.start(work))


class AioPieces(Pieces[T, V], AioFace[T]):
    """What something of trio's gives, for ``async for``."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> V:
        found = await self._do(self._next)
        if found is None:
            raise StopAsyncIteration
        return found
