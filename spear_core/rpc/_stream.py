"""Streams: messages both ways under one id, with credit so that a slow reader stops the sender."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import trio

from spear_core.api import Message, MessageFlag, MessageKind
from spear_core.errors import ChannelClosedError, ProtocolError, ResourceExhaustedError
from spear_core.rpc._serving import Payload, Reply
from spear_core.rpc.codec import decode_head, encode_head
from spear_core.rpc.framing import HEADER_SIZE

__all__ = ["WINDOW", "Stream"]

WINDOW = 256 << 10
"""Bytes of frames that either side may send before the other grants more."""
_PIECE = 64 << 10
_MOST_CREDIT = 1 << 40


@attrs.frozen
class _CreditHead:
    bytes: int


class Stream(trio.abc.AsyncResource):
    """One end of a stream; one task sends and one receives at a time.

    It ends when the serving side answers the request that opened it.
    """

    def __init__(
        self,
        id_: int,
        *,
        send: Callable[[Message], Awaitable[None]],
        post: Callable[[Message], None],
        max_message: int,
    ) -> None:
        self._id = id_
        self._send = send
        self._post = post
        self._max_message = max_message
        self._credit = WINDOW
        self._granted = WINDOW
        self._consumed = 0
        self._inbox: deque[Message] = deque()
        self._parts: list[Payload] = []
        self._part_size = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._sending = self._receiving = False
        self._eof_sent = False
        self._eof_seen = False
        self._broken: Exception | None = None
        self._answer: Reply | Exception | None = None

    @property
    def answered(self) -> bool:
        """The serving side has answered, or the stream is broken."""
        return self._answer is not None or self._broken is not None

    async def send(self, data: Payload) -> None:
        """Send one message, in pieces when it is large.

        Waits while the peer does not read. **Raises**
        :exc:`~spear_core.errors.ChannelClosedError` after :meth:`send_eof` or the stream's end,
        :exc:`~spear_core.errors.ChannelBrokenError` when the session is over. **Cancellation**: a
        message of up to 64 KiB is sent whole or not at all; a larger one may be cut, and then the
        stream sends nothing more.
        """
        view = memoryview(data)
        if len(view) > self._max_message:
            raise ValueError(
                f"a message has at most {self._max_message} bytes, this one {len(view)}"
            )
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        sent = 0
        try:
            while sent < len(view) or not sent:
                piece = view[sent : sent + _PIECE]
                more = MessageFlag.MORE if sent + len(piece) < len(view) else 0
                await self._send_piece(Message(MessageKind.DATA, self._id, more, b"", piece))
                sent += len(piece) or 1
        except trio.Cancelled:
            self._eof_sent = self._eof_sent or sent > 0
            raise
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Send nothing more; receiving goes on. Twice is fine. **Raises** as :meth:`send`."""
        if not self._eof_sent and self._answer is None:
            await self._send_piece(Message(MessageKind.DATA, self._id, MessageFlag.END_STREAM))
        self._eof_sent = True

    async def receive(self) -> bytes:
        """Wait for the next message.

        **Raises** :exc:`trio.EndOfChannel` when the peer sends nothing more, what the serving side
        raised, :exc:`~spear_core.errors.ChannelBrokenError` when the session is over.
        **Cancellation**: nothing is lost.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving = True
        try:
            while True:
                piece = await self._next_piece()
                self._consume(piece)
                if not piece.flags & MessageFlag.MORE:
                    data = b"".join(self._parts)
                    self._parts.clear()
                    self._part_size = 0
                    return data
        finally:
            self._receiving = False

    async def result(self) -> Reply:
        """Wait for the serving side's answer. **Raises** what it raised."""
        while self._answer is None:
            if self._broken is not None:
                raise self._broken
            await self._changed.park()
        await trio.lowlevel.checkpoint()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    async def aclose(self) -> None:
        """End the stream here; the peer hears of it when the block that opened it ends."""
        self.break_(ChannelClosedError("the stream is closed"))
        await trio.lowlevel.checkpoint()

    async def _send_piece(self, message: Message) -> None:
        cost = _cost(message)
        self._check_sendable()
        while self._credit < cost:
            await self._changed.park()
            self._check_sendable()
        self._credit -= cost
        try:
            await self._send(message)
        except BaseException:
            self._credit += cost
            raise

    def _check_sendable(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._eof_sent or self._answer is not None:
            raise ChannelClosedError("nothing more can be sent on this stream")

    async def _next_piece(self) -> Message:
        while not self._inbox:
            if self._broken is not None:
                raise self._broken
            if isinstance(self._answer, Exception):
                raise self._answer
            if self._eof_seen or self._answer is not None:
                raise trio.EndOfChannel
            await self._changed.park()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._inbox.popleft()

    def _consume(self, piece: Message) -> None:
        self._parts.append(piece.payload)
        self._part_size += len(piece.payload)
        if self._part_size > self._max_message:
            error = ResourceExhaustedError(
                f"a message of more than {self._max_message} bytes on a stream", retryable=False
            )
            self.break_(error)
            raise error
        self._consumed += _cost(piece)
        if self._consumed >= WINDOW // 2 and not self._eof_seen:
            self._granted += self._consumed
            head = encode_head({"bytes": self._consumed})
            self._consumed = 0
            self._post(Message(MessageKind.CREDIT, self._id, 0, head))

    # What the session reports.

    def got_data(self, message: Message) -> None:
        """A DATA frame came. **Raises** :exc:`~spear_core.errors.ProtocolError`."""
        if self._eof_seen:
            raise ProtocolError(f"data on stream {self._id} after its end")
        self._granted -= _cost(message)
        if self._granted < 0:
            raise ProtocolError(f"more data on stream {self._id} than was granted")
        self._eof_seen = bool(message.flags & MessageFlag.END_STREAM)
        if (message.payload or not self._eof_seen) and self._broken is None:
            self._inbox.append(message)
        self._changed.unpark_all()

    def got_credit(self, message: Message) -> None:
        """A CREDIT frame came. **Raises** :exc:`~spear_core.errors.ProtocolError`."""
        count = decode_head(message.head, _CreditHead).bytes
        self._credit += count
        if count <= 0 or self._credit > _MOST_CREDIT:
            raise ProtocolError(f"a credit of {count} bytes")
        self._changed.unpark_all()

    def settle(self, answer: Reply | Exception) -> None:
        """The serving side has ended the stream."""
        self._answer = answer
        self._changed.unpark_all()

    def lose(self, error: Exception) -> None:
        """The session is over: what has arrived can still be received, then ``error`` is raised."""
        if self._broken is None:
            self._broken = error
        self._changed.unpark_all()

    def break_(self, error: Exception) -> None:
        """Nothing goes on: every call raises ``error`` from now on."""
        self._inbox.clear()
        self.lose(error)


def _cost(message: Message) -> int:
    """What a frame takes of the window: all of it, so that a flood of empty ones ends too."""
    return HEADER_SIZE + len(message.head) + len(message.payload)
