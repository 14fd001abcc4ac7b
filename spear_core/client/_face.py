"""What the clients for asyncio and for threads are made of: things of trio's, and their thread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

import trio

from spear_core.client._thread import TrioThread

__all__ = ["Face", "Pieces", "Source", "following"]

T = TypeVar("T")
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)


class Source(Protocol[V_co]):
    """Gives one thing after the other, and :exc:`trio.EndOfChannel` after the last."""

    async def receive(self) -> V_co:
        """The next."""


class Face(Generic[T]):
    """Something of trio's, for callers who are elsewhere."""

    def __init__(self, inner: T, thread: TrioThread) -> None:
        self._inner = inner
        self._thread = thread


class Pieces(Face[T], ABC, Generic[T, V]):
    """Something that gives one thing after the other."""

    @abstractmethod
    async def _next(self) -> V | None:
        """The next one, in trio; ``None`` after the last."""


async def following(source: Source[V]) -> V | None:
    """The next thing, in trio; ``None`` after the last."""
    try:
        return await source.receive()
    except trio.EndOfChannel:
        return None
