"""The worker's end of a streamed execution: chunks in, chunks out, and credit for both.

Whoever reads the channel brings chunks and credit here; the function takes them on the main thread,
on another one, or on an event loop.
"""

from __future__ import annotations

import threading
from collections import deque
from struct import Struct

from spear_sdk import _frames as f
from spear_sdk._errors import FunctionError, OutputError, TaskCancelledError
from spear_sdk._hostcalls import async_event
from spear_sdk._msgpack import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from spear_sdk._channel import WorkerChannel

__all__ = ["MAX_CHUNK", "WINDOW", "WorkerStream"]

WINDOW = 256 << 10
"""Bytes of frames that either side may send before the other grants more."""
MAX_CHUNK = 16 << 20
_PIECE = 64 << 10
_HEADER = 16
_CREDIT = b"\x81" + pack("bytes")
_U64 = Struct(">BQ")


class WorkerStream:
    """One stream that the node has opened. Its methods may be called from any thread.

    :param number: the id of the request that opened it.
    """

    def __init__(self, channel: WorkerChannel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._main_thread = threading.get_ident()
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._inbox: deque[tuple[int, f.Buffer]] = deque()
        self._parts: list[f.Buffer] = []
        self._ended = False
        self._cancelled = False
        self._credit = self._granted = WINDOW
        self._consumed = 0

    # What arrives. Called by whoever reads the channel.

    def on_data(self, flags: int, payload: f.Buffer) -> None:
        """A DATA frame came. Raises: ProtocolError."""
        cost, ends = _HEADER + len(payload), bool(flags & f.END_STREAM)
        with self._changed:
            self._granted -= cost
            if self._granted < 0 or self._ended:
                raise f.ProtocolError("more data on a stream than was granted, or after its end")
            if payload or not ends:
                self._inbox.append((flags, payload))
            self._ended = ends  # after what comes before it: who looks, looks without the lock
            self._notify()

    def on_credit(self, count: int) -> None:
        """The node has read so much."""
        with self._changed:
            self._credit += count
            self._notify()

    def cancel(self) -> None:
        """The execution is cancelled: who waits in a thread is told here, a loop by itself."""
        with self._changed:
            self._cancelled = True
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()
        self._wakers.clear()

    # What the function does.

    def receive(self) -> f.Buffer | None:
        """Wait for the next chunk; None at the end. Raises: TaskCancelledError."""
        while True:
            self._wait(self._has_input)
            taken, data = self._take()
            if taken:
                return data

    async def areceive(self) -> f.Buffer | None:
        """The same on the event loop that runs here."""
        while True:
            await self._await(self._has_input)
            taken, data = self._take()
            if taken:
                return data

    def send(self, data: f.Buffer) -> None:
        """Send a chunk; waits while nobody reads. Raises: OutputError, TaskCancelledError."""
        for piece, more in _pieces(data):
            cost = _HEADER + len(piece)
            self._wait(lambda cost=cost: self._credit >= cost)  # type: ignore[misc]
            self._send_piece(piece, more, cost)

    async def asend(self, data: f.Buffer) -> None:
        """The same on the event loop that runs here."""
        for piece, more in _pieces(data):
            cost = _HEADER + len(piece)
            await self._await(lambda cost=cost: self._credit >= cost)  # type: ignore[misc]
            self._send_piece(piece, more, cost)

    def receive_all(self, limit: int) -> f.Buffer:
        """The whole input joined. Raises: FunctionError when it is longer than `limit`."""
        parts, size = [], 0
        while (data := self.receive()) is not None:
            parts.append(data)
            size += len(data)
            if size > limit:
                raise FunctionError(
                    f"the function takes its input whole, and that has more than {limit} bytes; "
                    "one that takes an iterator of chunks has no limit",
                    code="resource_exhausted",
                )
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _has_input(self) -> bool:
        return bool(self._inbox) or self._ended

    def _take(self) -> tuple[bool, f.Buffer | None]:
        """Take one frame off the inbox: whether that makes a chunk or the end, and the chunk."""
        if not self._inbox:
            return True, None
        flags, payload = self._inbox.popleft()
        self._consumed += _HEADER + len(payload)
        if self._consumed >= WINDOW // 2 and not self._ended:
            granted, self._consumed = self._consumed, 0
            with self._changed:  # whoever reads the channel takes from it at the same time
                self._granted += granted
            head = _CREDIT + _U64.pack(0xCF, granted)
            self._channel.send(f.CREDIT, self._number, head)
        if not flags & f.MORE and not self._parts:
            return True, payload
        self._parts.append(payload)
        if flags & f.MORE:
            return False, None
        data = b"".join(self._parts)
        self._parts.clear()
        return True, data

    def _send_piece(self, piece: f.Buffer, more: int, cost: int) -> None:
        with self._changed:
            self._credit -= cost
        self._channel.send(f.DATA, self._number, b"", piece, more)

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Until then; the main thread reads the channel itself, which saves two switches."""
        if self._cancelled:
            raise TaskCancelledError("the task was cancelled")
        if ready():
            return
        if threading.get_ident() == self._main_thread:
            watched = self._channel.unwatch()
            try:
                while not ready() and not self._cancelled:
                    self._channel.read()
            finally:
                if watched:
                    self._channel.watch()
        else:
            with self._changed:
                while not ready() and not self._cancelled:
                    self._changed.wait()
        if self._cancelled:
            raise TaskCancelledError("the task was cancelled")

    async def _await(self, ready: Callable[[], bool]) -> None:
        while not ready():
            wait, wake = async_event()
            with self._changed:
                if ready():
                    return
                self._wakers.append(wake)
            await wait()


def _pieces(data: f.Buffer) -> list[tuple[f.Buffer, int]]:
    """What goes as one frame each, and its flags."""
    size = len(data)
    if size <= _PIECE:
        return [(data, 0)]
    if size > MAX_CHUNK:
        raise OutputError(
            f"a chunk has at most {MAX_CHUNK} bytes, this one {size}", code="resource_exhausted"
        )
    view = memoryview(data)
    return [
        (view[at : at + _PIECE], f.MORE if at + _PIECE < size else 0)
        for at in range(0, size, _PIECE)
    ]
