"""What comes out of a guest: a bounded result, and lines for the log."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable

import trio

_CHUNK = 1 << 16
_LOG_CHUNK = 4 << 10
"""Small: each of its lines is a call, and others want their turn between two chunks."""
_DRAIN_CHUNKS = 16
_MAX_LINE = 16 << 10
_TAIL_LINES = 20
_TAIL_LINE = 500


async def read_bounded(stream: trio.abc.ReceiveStream, limit: int) -> tuple[bytes, bool]:
    """Everything up to the stream's end, and True; or, once it is more than `limit`, False."""
    chunks: list[bytes | bytearray] = []
    left = limit
    while chunk := await stream.receive_some(_CHUNK):
        chunks.append(chunk)
        left -= len(chunk)
        if left < 0:
            return b"".join(chunks), False
    return b"".join(chunks), True


class Lines:
    """Cuts a byte stream into lines of text for `emit` and remembers the last ones.

    After `limit` bytes it only remembers, which is cheap: a flood must not keep the node busy.
    """

    def __init__(self, emit: Callable[[str], None], limit: int) -> None:
        self._emit = emit
        self._limit = self._left = limit
        self._rest = b""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def tail(self) -> str:
        """The last lines, each cut to a readable length."""
        return "\n".join(self._tail)

    def restart(self) -> None:
        """What comes from now on belongs to another execution, with a limit of its own."""
        self._left = self._limit

    def _line(self, line: bytes) -> None:
        text = line.rstrip(b"\r").decode(errors="replace")
        self._tail.append(text[:_TAIL_LINE])
        if self._left > 0:
            self._emit(text)

    def feed(self, data: bytes | bytearray) -> None:
        """Take in what arrived; a line longer than 16 KiB is cut into several."""
        if self._left <= 0:
            self._rest = (self._rest + data)[-_MAX_LINE:]
            return
        *whole, rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._line(line)
        while len(rest) > _MAX_LINE:
            self._line(rest[:_MAX_LINE])
            rest = rest[_MAX_LINE:]
        self._rest = rest
        self._left -= len(data)
        if self._left <= 0:
            self._emit(f"over {self._limit} bytes of output: the rest is not logged")

    def flush(self) -> None:
        """Take what stands after the last newline for a line."""
        if self._rest:
            for line in self._rest.removesuffix(b"\n").split(b"\n"):
                self._line(line)
            self._rest = b""

    def drain(self, descriptor: int) -> None:
        """Feed what a non-blocking descriptor has right now, and end the last line there."""
        with contextlib.suppress(OSError):  # nothing there, or closed
            for _ in range(_DRAIN_CHUNKS):  # and not for ever, where somebody goes on writing
                if not (data := os.read(descriptor, _LOG_CHUNK)):
                    break
                self.feed(data)
        self.flush()

    async def pump(self, stream: trio.abc.ReceiveStream) -> None:
        """Feed everything up to the stream's end, or until it is closed on our side."""
        with contextlib.suppress(trio.ClosedResourceError):
            while chunk := await stream.receive_some(_LOG_CHUNK):
                self.feed(chunk)
        self.flush()
