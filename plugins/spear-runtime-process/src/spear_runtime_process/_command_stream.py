"""A command's streamed execution: its stdin and stdout, live."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable

import trio

from spear_core.api import MAX_CHUNK, DuplexStream, ExecutionResponse
from spear_core.errors import ChannelClosedError, ResourceExhaustedError, SpearError

_CHUNK = 1 << 16
"""Bytes read at a time: what a pipe holds."""


class CommandStream(DuplexStream[ExecutionResponse]):
    """Chunks are written to the command's stdin, and its output comes as it is read.

    :param stdin: our end of the pipe, which is closed with the stream.
    :param nursery: where a chunk whose sender was cancelled in its middle is written to its end.
    """

    def __init__(self, stdin: int, stdout: trio.lowlevel.FdStream, nursery: trio.Nursery) -> None:
        os.set_blocking(stdin, False)
        self._stdin = stdin
        self._stdout = stdout
        self._nursery = nursery
        self._turn = trio.Lock()
        self._unwritten = memoryview(b"")
        self._output_ended = False
        self._done = trio.Event()
        self._response: ExecutionResponse | SpearError = ChannelClosedError(
            "the stream's block has ended"
        )

    @property
    def ended(self) -> bool:
        """The command has ended by itself."""
        return self._done.is_set()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) > MAX_CHUNK:
            raise ResourceExhaustedError(
                f"a chunk has at most {MAX_CHUNK} bytes, this one {len(data)}", retryable=False
            )
        async with self._turn:
            await self._write()
            self._unwritten = memoryview(bytes(data))
            try:
                await self._write()
            except trio.Cancelled:
                if len(self._unwritten) == len(data):
                    self._unwritten = memoryview(b"")
                else:  # whole or not at all
                    self._nursery.start_soon(self._finish_chunk)
                raise

    async def _finish_chunk(self) -> None:
        with contextlib.suppress(ChannelClosedError):
            async with self._turn:
                await self._write()

    async def _write(self) -> None:
        while self._unwritten:
            if self._stdin < 0:
                raise ChannelClosedError("nothing more can be sent on this stream")
            try:
                count = os.write(self._stdin, self._unwritten)
                self._unwritten = self._unwritten[count:]
            except BlockingIOError:
                with contextlib.suppress(trio.ClosedResourceError):  # then it is -1
                    await trio.lowlevel.wait_writable(self._stdin)
            except BrokenPipeError as exc:
                self._unwritten = memoryview(b"")
                self.close()
                raise ChannelClosedError("the command takes no more input") from exc

    async def send_eof(self) -> None:
        async with self._turn:
            with contextlib.suppress(ChannelClosedError):
                await self._write()
            self.close()

    def close(self) -> None:
        """Close stdin, whether all is written or not; who waits to write is told."""
        if self._stdin >= 0:
            descriptor, self._stdin = self._stdin, -1
            trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)

    async def receive(self) -> bytes:
        if not self._output_ended:
            try:
                data = await self._stdout.receive_some(_CHUNK)
            except trio.ClosedResourceError:
                raise ChannelClosedError("the stream's block has ended") from None
            if data:
                return bytes(data)
            self._output_ended = True
        await trio.lowlevel.checkpoint()
        raise trio.EndOfChannel

    async def result(self) -> ExecutionResponse:
        with contextlib.suppress(trio.EndOfChannel):
            while True:
                await self.receive()
        await self._done.wait()
        if isinstance(self._response, SpearError):
            raise self._response
        return self._response

    async def aclose(self) -> None:
        self.close()
        await self._stdout.aclose()

    async def attend(self, end: Callable[[], Awaitable[ExecutionResponse]]) -> None:
        """Wait for the command's end and keep what it means."""
        try:
            self._response = await end()
        except SpearError as error:  # for whoever asks for the result
            self._response = error
        self._done.set()
        self.close()
