"""Frames: messages as bytes on a stream, and back. Pure, no I/O.

A frame is a 16-byte header, then the head, then the payload (``docs/wire-format.md``)::

    >IBBHQ   u32 length of all that follows it | u8 kind | u8 flags | u16 head length | u64 id
"""

from __future__ import annotations

from struct import Struct

from spear_core.api import Message
from spear_core.errors import ProtocolError

__all__ = ["HEADER_SIZE", "MAX_FRAME", "FrameParser", "encode_header"]

_HEADER = Struct(">IBBHQ")
HEADER_SIZE = _HEADER.size
_FIXED = HEADER_SIZE - 4
"""What the length counts besides head and payload."""

MAX_FRAME = (64 << 20) + (64 << 10)
"""Default limit of a frame's length: 64 MiB of payload and a full head."""

_BUFFER = 64 << 10
_FIRST_STEP = 1 << 20
"""A large frame's memory grows with what arrives, from this size on, never with a mere claim."""


def encode_header(message: Message, *, max_frame: int = MAX_FRAME) -> bytes:
    """The 16 bytes before ``message.head`` and ``message.payload``.

    **Raises** :exc:`ValueError` for a message that no frame can hold.
    """
    head_size = len(message.head)
    payload = message.payload
    if isinstance(payload, memoryview) and payload.nbytes != len(payload):
        raise ValueError("a payload is a plain run of bytes; cast the memoryview to 'B'")
    length = _FIXED + head_size + len(payload)
    if head_size > 0xFFFF:
        raise ValueError(f"a head has at most 65535 bytes, this one {head_size}")
    if length > max_frame:
        raise ValueError(f"a frame has at most {max_frame} bytes here, this one {length}")
    return _HEADER.pack(length, message.kind, message.flags, head_size, message.id)


class FrameParser:
    """Takes bytes in any portions and gives messages.

    Either ``feed(data)``, or without a copy: read into ``get_buffer()``, then ``received(n)``.
    Then call ``next_message()`` until it gives ``None``. Payloads are the caller's own.
    """

    def __init__(self, *, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._large: _LargeFrame | None = None
        self._failed = ""

    @property
    def mid_frame(self) -> bool:
        """A frame has begun and is not complete (once ``next_message`` has given ``None``)."""
        return self._large is not None or self._start != self._end

    def get_buffer(self) -> memoryview:
        """Where the next bytes go: writable, never empty. Give the count to :meth:`received`."""
        if self._large is not None:
            return self._large.get_buffer()
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start and self._end == _BUFFER:
            rest = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, len(rest)
            self._view[: self._end] = rest
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """``count`` bytes are now in what :meth:`get_buffer` gave."""
        if self._large is not None:
            self._large.received(count)
        else:
            self._end += count

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take ``data`` and give the messages it completes. **Raises** as ``next_message``."""
        messages: list[Message] = []
        view = memoryview(data)
        while view:
            room = self.get_buffer()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            room.release()
            self.received(count)
            view = view[count:]
            while (message := self.next_message()) is not None:
                messages.append(message)
        return messages

    def next_message(self) -> Message | None:
        """The next complete message, or ``None``.

        **Raises** :exc:`~spear_core.errors.ProtocolError` for a frame that cannot be, and again
        at every further call: after it nothing on the stream can be trusted.
        """
        if self._large is not None:
            if (message := self._large.message()) is not None:
                self._large = None
            return message
        if self._failed:
            raise ProtocolError(self._failed)
        start = self._start
        available = self._end - start
        if available < HEADER_SIZE:
            return None
        length, kind, flags, head_size, id_ = _HEADER.unpack_from(self._buffer, start)
        if length > self._max_frame or length < _FIXED + head_size:
            self._refuse(length, head_size)
        after = start + 4 + length
        if after > self._end:
            if length + 4 > _BUFFER:
                held = self._view[start + HEADER_SIZE : self._end]
                self._large = _LargeFrame(kind, id_, flags, head_size, length - _FIXED, held)
                self._start = self._end = 0
            return None
        head_end = start + HEADER_SIZE + head_size
        self._start = after
        return Message(
            kind,
            id_,
            flags,
            bytes(self._view[start + HEADER_SIZE : head_end]),
            bytes(self._view[head_end:after]),
        )

    def _refuse(self, length: int, head_size: int) -> None:
        if length > self._max_frame:
            self._failed = f"a frame of {length} bytes; at most {self._max_frame} are allowed"
        elif length < _FIXED:
            self._failed = f"a frame of {length} bytes; its header alone has {_FIXED}"
        else:
            self._failed = f"a head of {head_size} bytes in a frame of {length}"
        raise ProtocolError(self._failed)


class _LargeFrame:
    """A frame that does not fit the buffer: read straight into memory of its own."""

    def __init__(
        self,
        kind: int,
        id_: int,
        flags: int,
        head_size: int,
        size: int,
        held: memoryview,
    ) -> None:
        self._kind, self._id, self._flags, self._head_size = kind, id_, flags, head_size
        self._size = size
        self._body = bytearray(min(size, max(_FIRST_STEP, len(held))))
        self._body[: len(held)] = held
        self._filled = len(held)
        self._lent: memoryview | None = None

    def get_buffer(self) -> memoryview:
        self._take_back()
        if self._filled == len(self._body):
            self._body += bytes(min(self._filled, self._size - self._filled))
        self._lent = memoryview(self._body)[self._filled :]
        return self._lent

    def received(self, count: int) -> None:
        self._take_back()
        self._filled += count

    def _take_back(self) -> None:
        if self._lent is not None:
            self._lent.release()
            self._lent = None

    def message(self) -> Message | None:
        if self._filled < self._size:
            return None
        body = memoryview(self._body)
        head = bytes(body[: self._head_size])
        return Message(self._kind, self._id, self._flags, head, body[self._head_size :])
