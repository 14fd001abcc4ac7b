"""Streams within one process: the same promises as over a channel, without frames."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

from spear_core.api import MAX_CHUNK, DuplexStream
from spear_core.errors import ChannelClosedError, ResourceExhaustedError
from spear_core.rpc._serving import Payload
from spear_core.rpc._stream import WINDOW
from spear_core.rpc.framing import HEADER_SIZE

__all__ = ["FarEnd", "open_local_stream"]

R = TypeVar("R")


class _Half:
    """Chunks in one direction, at most a window of them (or one, if it is larger)."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._ended = False
        self._refused: Exception | None = None

    async def put(self, data: Payload) -> None:
        if len(data) > MAX_CHUNK:
            raise too_large(len(data))
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._held >= WINDOW and self._refused is None and not self._ended:
            await self._changed.park()
        if self._refused is not None:
            raise self._refused
        if self._ended:
            raise ChannelClosedError("nothing more can be sent on this stream")
        self._chunks.append(bytes(data))
        self._held += len(data) + HEADER_SIZE
        self._changed.unpark_all()

    async def get(self) -> bytes:
        """The next chunk. Raises: EndOfChannel."""
        await self.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._chunks:
            raise trio.EndOfChannel
        data = self._chunks.popleft()
        self._held -= len(data) + HEADER_SIZE
        self._changed.unpark_all()
        return data

    async def wait(self) -> None:
        """Until there is a chunk or the end."""
        while not self._chunks and not self._ended and self._refused is None:
            await self._changed.park()

    @property
    def ready(self) -> bool:
        return bool(self._chunks) or self._ended or self._refused is not None

    def end(self) -> None:
        """No more chunks will come; those that are here can still be read."""
        self._ended = True
        self._changed.unpark_all()

    def refuse(self, error: Exception) -> None:
        """Nobody reads here any more: drop what there is, and raise this to who writes."""
        self._chunks.clear()
        self._held = 0
        self._refused = self._refused or error
        self._changed.unpark_all()


def too_large(size: int) -> ResourceExhaustedError:
    """What sending a chunk of more than :data:`~spear_core.api.MAX_CHUNK` bytes raises."""
    return ResourceExhaustedError(
        f"a chunk has at most {MAX_CHUNK} bytes, this one {size}", retryable=False
    )


class FarEnd:
    """The serving side of a local stream; one task receives and one sends at a time."""

    def __init__(self, input_: _Half, output: _Half) -> None:
        self._input = input_
        self._output = output

    async def receive(self) -> bytes:
        """The next chunk of input. **Raises** :exc:`trio.EndOfChannel` at its end."""
        return await self._input.get()

    async def wait_input(self) -> None:
        """Wait until :meth:`receive` would not have to."""
        await self._input.wait()

    @property
    def input_ready(self) -> bool:
        """Whether :meth:`receive` would not have to wait."""
        return self._input.ready

    async def send(self, data: Payload) -> None:
        """Send a chunk of output; waits while nobody reads. **Cancellation**: whole or not."""
        await self._output.put(data)

    def send_eof(self) -> None:
        """No more output follows; the work may go on."""
        self._output.end()

    def refuse_input(self) -> None:
        """No more input is wanted; who sends some gets an error."""
        self._input.refuse(ChannelClosedError("the function takes no more input"))


class _NearEnd(DuplexStream[R], Generic[R]):
    def __init__(self, input_: _Half, output: _Half) -> None:
        self._input = input_
        self._output = output
        self.scope = trio.CancelScope()
        self._done = trio.Event()
        self._answer: tuple[R] | None = None
        self._error: Exception = ChannelClosedError("the stream's block has ended")

    async def send(self, data: Payload) -> None:
        await self._input.put(data)

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._input.end()

    async def receive(self) -> bytes:
        try:
            return await self._output.get()
        except trio.EndOfChannel:
            if self._done.is_set() and self._answer is None:
                raise self._error from None
            raise

    async def result(self) -> R:
        try:
            while True:
                await self._output.get()
        except trio.EndOfChannel:
            await self._done.wait()
        if self._answer is None:
            raise self._error
        return self._answer[0]

    async def aclose(self) -> None:
        self.scope.cancel()
        await self._done.wait()

    async def run(self, work: Callable[[FarEnd], Awaitable[R]]) -> None:
        ended = ChannelClosedError("the function has ended")
        try:
            with self.scope:
                self._answer = (await work(FarEnd(self._input, self._output)),)
        except Exception as error:  # barrier: raised to who waits for the result
            self._error = error
        finally:
            self._done.set()
            self._input.refuse(ended)
            self._output.end()


@asynccontextmanager
async def open_local_stream(
    work: Callable[[FarEnd], Awaitable[R]],
) -> AsyncGenerator[DuplexStream[R]]:
    """Run ``work`` at the far end of a stream while the block lasts.

    What it returns is the stream's result. What it raises is raised by
    :meth:`DuplexStream.receive` after the last chunk, and by :meth:`DuplexStream.result`. Leaving
    the block cancels it, and when the block is over it has ended.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        near = _NearEnd[R](_Half(), _Half())
        nursery.start_soon(near.run, work)
        try:
            yield near
        except Exception as exc:  # barrier: raised again as it was, below
            failure = exc
        near.scope.cancel()
    if failure is not None:
        raise failure
