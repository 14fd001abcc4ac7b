"""Pieces of input and output while a function runs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

import trio

__all__ = ["MAX_CHUNK", "DuplexStream"]

R = TypeVar("R")

MAX_CHUNK = 16 << 20
"""Bytes of one chunk. A chunk is whole in memory wherever it passes."""


class DuplexStream(trio.abc.AsyncResource, Generic[R]):
    """Chunks of bytes both ways, each with its boundaries kept, and a result at the end.

    One task sends and one receives at a time. A reader that does not read stops the writer on the
    other side; no more than a window of a few hundred KiB, or one larger chunk, is held in
    between.
    """

    @abstractmethod
    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send one chunk; waits while the other side does not read.

        **Raises** :exc:`~spear_core.errors.ChannelClosedError` after :meth:`send_eof` or when the
        other side takes no more, :exc:`~spear_core.errors.ResourceExhaustedError` for a chunk of
        more than :data:`MAX_CHUNK` bytes, :exc:`~spear_core.errors.SpearError` when the path
        broke. **Cancellation**: a chunk of up to 64 KiB is sent whole or not at all.
        """

    @abstractmethod
    async def send_eof(self) -> None:
        """Send nothing more; receiving goes on. Twice is fine. **Raises** as :meth:`send`."""

    @abstractmethod
    async def receive(self) -> bytes:
        """Wait for the next chunk.

        **Raises** :exc:`trio.EndOfChannel` when the other side sends no more, which does not say
        that all went well: :meth:`result` does; :exc:`~spear_core.errors.SpearError` when the path
        broke. **Cancellation**: nothing is lost.
        """

    @abstractmethod
    async def result(self) -> R:
        """Wait for the end and say how it was; chunks that nobody has received are dropped.

        It receives until then, so nobody else does meanwhile. Asking again gives the same.
        **Raises** :exc:`~spear_core.errors.SpearError` when the path broke.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """End it here; if the other side is still at work, that is a cancellation."""
