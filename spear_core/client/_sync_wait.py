"""Waiting in any thread for what runs in the trio thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import wait
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Generic, Self, TypeVar

from spear_core.client._face import Face, Pieces
from spear_core.client._thread import Job, TrioThread

__all__ = ["Block", "SyncFace", "SyncPieces", "outcome"]

T = TypeVar("T")
V = TypeVar("V")


def outcome(job: Job[T]) -> T:
    """Wait for the end; an interrupt cancels the job, and waits until it has stopped."""
    try:
        return job.future.result()
    finally:
        if not job.future.done():
            job.cancel()
            wait([job.future])


class Block(AbstractContextManager[V], Generic[T, V]):
    """A block of trio's, entered and left from here.

    No generator: one that is forgotten would be closed while the interpreter ends, and wait there
    for a thread that does not run any more.
    """

    def __init__(
        self,
        make: Callable[[], AbstractAsyncContextManager[T]],
        thread: TrioThread,
        face: Callable[[T, TrioThread], V],
    ) -> None:
        self._make = make
        self._thread = thread
        self._face = face

    def __enter__(self) -> V:
        self._held = outcome(self._thread.hold(self._make()))
        return self._face(self._held.value, self._thread)

    def __exit__(self, *_: object) -> None:
        self._held.leave().result()


class SyncFace(Face[T]):
    """Something of trio's, for any thread."""

    def _do(self, work: Callable[[], Awaitable[V]]) -> V:
        return outcome(self._thread.start(work))


class SyncPieces(Pieces[T, V], SyncFace[T]):
    """What something of trio's gives, for ``for``."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> V:
        found = self._do(self._next)
        if found is None:
            raise StopIteration
        return found
