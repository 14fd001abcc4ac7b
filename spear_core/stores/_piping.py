"""Values that come out of a pipe: kept by one thread while another hashes what is kept already."""

from __future__ import annotations

import select
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from spear_core.errors import InvalidRequestError, SpearError

__all__ = ["Hash", "PipeTaker", "take_all"]

_STINT = 4 << 20
"""Bytes after which the hashing thread is told, and others get the store's thread."""
_STINT_S = 0.05
"""Whoever fills a pipe in drops has a thread no longer than this."""
_PATIENCE_MS = 2
"""To wait this long in the thread costs less than to come back to it."""
_REREAD = 1 << 20


class Hash(Protocol):
    """An object of :mod:`hashlib`."""

    def update(self, data: memoryview, /) -> None: ...


class PipeTaker(ABC):
    """Something that is being written, and takes bytes straight from a pipe. All of it blocks."""

    @abstractmethod
    def take(self, pipe: int, most: int) -> int:
        """Append at most so many bytes (≥ 1) of those that are in the pipe: how many; 0 when it
        was closed at its other end.

        **Raises** :exc:`BlockingIOError` when none are there, and
        :exc:`~spear_core.errors.StoreFullError`.
        """

    @abstractmethod
    def read_back(self, into: memoryview, at: int) -> int:
        """Read what was appended, from the byte ``at`` of all on: how many bytes (≥ 1)."""


class _Taking:
    """One value on its way, seen by both threads. ``at``: where it begins among what is kept."""

    def __init__(self, taker: PipeTaker, pipe: int, *, at: int, size: int) -> None:
        self._taker = taker
        self._pipe = pipe
        self._at = at
        self._size = size
        self._taken = self._hashed = 0
        self._ended = False
        self._more = trio.Event()
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    async def take(self, threads: trio.CapacityLimiter) -> None:
        """All of it. **Raises** :exc:`~spear_core.errors.InvalidRequestError` when it ends before,
        and what the taker raises."""
        while self._taken < self._size:
            await trio.lowlevel.wait_readable(self._pipe)
            await trio.to_thread.run_sync(self._take_some, limiter=threads)
            if self._ended:
                raise InvalidRequestError(
                    f"size: the pipe ended after {self._taken} of {self._size} bytes"
                )
            more, self._more = self._more, trio.Event()
            more.set()

    def _take_some(self) -> None:
        until = time.monotonic() + _STINT_S
        end = min(self._size, self._taken + _STINT)
        while self._taken < end and time.monotonic() < until:
            try:
                count = self._taker.take(self._pipe, end - self._taken)
            except BlockingIOError:
                if not self._poll.poll(_PATIENCE_MS):
                    return
                continue
            if not count:
                self._ended = True
                return
            self._taken += count

    async def hash(self, digest: Hash, threads: trio.CapacityLimiter) -> None:
        """All of it, as it comes."""
        room = memoryview(bytearray(min(_REREAD, self._size)))
        while self._hashed < self._size:
            if self._hashed == self._taken:
                await self._more.wait()
                continue
            await trio.to_thread.run_sync(
                self._hash_some, digest, room, self._taken, limiter=threads
            )

    def _hash_some(self, digest: Hash, room: memoryview, end: int) -> None:
        while self._hashed < end:
            into = room[: end - self._hashed]
            count = self._taker.read_back(into, self._at + self._hashed)
            digest.update(into[:count])
            self._hashed += count


async def take_all(
    taker: PipeTaker,
    pipe: int,
    *,
    at: int,
    size: int,
    digest: Hash | None,
    threads: trio.CapacityLimiter,
) -> None:
    """Append the next ``size`` bytes of a pipe (:meth:`ObjectWriter.write_from
    <spear_core.api.ObjectWriter.write_from>`) to what has ``at`` bytes now, and hash them."""
    taking = _Taking(taker, pipe, at=at, size=size)
    if digest is None:
        await taking.take(threads)
        return
    failed: list[SpearError] = []

    async def part(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except SpearError as exc:
            failed.append(exc)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(part, lambda: taking.take(threads))
        nursery.start_soon(part, lambda: taking.hash(digest, threads))
    if failed:
        raise failed[0]
