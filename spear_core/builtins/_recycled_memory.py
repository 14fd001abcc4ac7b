"""Memory of values that nobody can see any more, for the next values."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from spear_core.builtins._memory_segment import Segment, room_for
from spear_core.stores import IdleSweep

__all__ = ["RecycledMemory"]

_CLOSED_AT_ONCE = 4 << 20
"""Bytes that a segment has at most to be closed on the spot, in a millisecond or so."""


def _unlimited() -> int:
    return 1 << 62


class RecycledMemory:
    """Hands out segments, and takes them back when they are not needed any more.

    To get new pages from the kernel takes several times as long as to copy a value into pages that
    are there. So a segment of which nobody can see anything any more waits for the next value of
    about its size. One that has been lent to another process is never used again: whoever had its
    descriptor may have pages in a pipe or a socket (``man 2 splice``) although neither a file nor a
    mapping is left by which the kernel would tell, and would see what is written into them.

    All methods are for any thread. :meth:`put_back` may run at any moment, between two lines of
    any other method of the same thread too, because Python's collector may call it.

    :param most_bytes: what may wait at most; 0: nothing ever does.
    :param most_files: how many segments there may be, those in use included.
    :param room: what may wait at most right now, for reasons of its owner's. It must not refer to
        anything that refers to values: what they are in refers to this.
    """

    def __init__(
        self, *, most_bytes: int, most_files: int, room: Callable[[], int] = _unlimited
    ) -> None:
        self._most_bytes = most_bytes
        self._most_files = most_files
        self._room = room
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, Segment]] = []
        """With the turn in which each came; the oldest first."""
        self._bytes = 0
        self._turn = 0
        self._returned: deque[Segment] = deque()
        self._open: set[int] = set()
        self._ended = False
        self._idle = IdleSweep()

    @property
    def waiting(self) -> int:
        """Bytes of what waits."""
        return self._bytes

    def take(self, size: int | None) -> Segment | None:
        """A segment for a value of so many bytes; ``None`` of these: it is not known.

        It belongs to the caller until :meth:`put_back`. ``None``: no descriptors are left.
        """
        found = self._taken(room_for(size)) if size else None
        if found is not None:
            return found
        if self.too_many(1):
            return None
        try:
            return self._new()
        except OSError:  # no descriptors are left in this process
            if self.clear():
                with suppress(OSError):
                    return self._new()
            return None

    def adopt(self, fd: int, size: int) -> Segment:
        """A segment of a file that others have sealed; as if it were taken."""
        self._open.add(fd)
        return Segment(fd, size=size, sealed=True)

    def _new(self) -> Segment:
        segment = Segment.new()
        self._open.add(segment.fd)
        return segment

    def _taken(self, room: int) -> Segment | None:
        try:
            with self._lock:
                for place in range(len(self._waiting) - 1, -1, -1):
                    segment = self._waiting[place][1]
                    if segment.room == room:
                        del self._waiting[place]
                        self._bytes -= segment.pages
                        return segment
                return None
        finally:
            self._settle()

    def too_many(self, more: int = 0) -> bool:
        """Whether so many more segments are too many, even if none waits."""
        while (excess := len(self._open) + more - self._most_files) > 0:
            if not self._drop(partial(self._oldest, excess)):
                return True
        return False

    # ---- what comes back

    def put_back(self, segment: Segment) -> None:
        """Its value, and whatever was made from it, is gone; or it was never filled."""
        self._returned.append(segment)
        self._settle()

    def _settle(self) -> None:
        """Sort what has come back, unless somebody does: who holds the lock looks once more after
        it."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                dropped = self._sort()
            finally:
                self._lock.release()
            self._close(dropped)

    def _sort(self) -> list[Segment]:
        dropped = []
        most = self._most()
        while self._returned:
            segment = self._returned.popleft()
            if segment.lent or not segment.room or segment.pages > most:
                dropped.append(segment)
                continue
            self._waiting.append((self._turn, segment))
            self._bytes += segment.pages
            self._idle.waits()
        return dropped + self._without(self._beyond(most))

    def _most(self) -> int:
        """What may wait now."""
        return max(0, min(self._most_bytes, self._room()))

    def _oldest(self, count: int) -> list[tuple[int, Segment]]:
        return self._waiting[:count]

    def _beyond(self, most: int) -> list[tuple[int, Segment]]:
        """The oldest ones, so that no more than that is left."""
        count, left = 0, self._bytes
        while left > most:
            left -= self._waiting[count][1].pages
            count += 1
        return self._oldest(count)

    # ---- what is given back

    def trim(self) -> None:
        """There may be less room than before."""
        if self._bytes > self._most():
            self._drop(lambda: self._beyond(self._most()))

    async def sweep_idle(self, seconds: float) -> None:
        """Give back what has waited for so long, or up to twice that, until cancelled; then all
        of it. Nothing happens, and no time passes, while nothing waits."""
        try:
            await self._idle.run(seconds, self._sweep)
        finally:
            self._most_bytes, self._ended = 0, True
            self.clear()

    def _sweep(self) -> bool:
        """Give back what has waited since before the last call; whether anything is left."""
        turn = self._turn
        self._turn += 1
        self._drop(lambda: [each for each in self._waiting if each[0] < turn])
        return bool(self._waiting)

    def clear(self) -> bool:
        """Give back all that waits, before this returns; whether there was any."""
        return self._drop(lambda: self._waiting, at_once=True)

    def _drop(
        self, which: Callable[[], list[tuple[int, Segment]]], *, at_once: bool = False
    ) -> bool:
        with self._lock:
            dropped = self._without(which())
        self._close(dropped, at_once=at_once)
        self._settle()
        return bool(dropped)

    def _without(self, dropped: list[tuple[int, Segment]]) -> list[Segment]:
        self._waiting = [each for each in self._waiting if each not in dropped]
        self._bytes -= sum(segment.pages for _, segment in dropped)
        return [segment for _, segment in dropped]

    def _close(self, segments: list[Segment], *, at_once: bool = False) -> None:
        for segment in segments:
            self._open.discard(segment.fd)  # before its number can be another's
            if not (at_once or self._ended or segment.pages <= _CLOSED_AT_ONCE):
                with suppress(RuntimeError):  # no more threads
                    trio.lowlevel.start_thread_soon(segment.close, lambda result: None)
                    continue
            segment.close()
