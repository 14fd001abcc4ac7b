"""Frames on a blocking socket: the wire format of the node's channels."""

from __future__ import annotations

import os
import socket
import threading
import time
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = [
    "CANCEL",
    "CHUNK",
    "CREDIT",
    "CRITICAL",
    "DATA",
    "END_STREAM",
    "ERROR",
    "FD",
    "GOAWAY",
    "HELLO",
    "MAX_HEAD",
    "MORE",
    "NOTICE",
    "PING",
    "PONG",
    "REQUEST",
    "RESPONSE",
    "STREAM",
    "WELCOME",
    "Descriptor",
    "Frame",
    "FrameReader",
    "FrameWriter",
    "ProtocolError",
]

HELLO, WELCOME, REQUEST, RESPONSE, DATA, CREDIT, CANCEL, PING, PONG, GOAWAY, NOTICE = range(1, 12)
END_STREAM, MORE, ERROR, STREAM, FD, CRITICAL = 1, 2, 4, 8, 16, 128

CHUNK = 256 * 1024
"""A larger payload goes in pieces of this size, so that it doesn't hold up other messages."""
MAX_HEAD = 0xFFFF
DEFAULT_MAX_FRAME = (64 << 20) + (64 << 10)
_HEADER = Struct(">IBBHQ")
_REST = _HEADER.size - 4
_FIRST_BUFFER = 64 * 1024
_SMALL = 16 * 1024
_INT = Struct("=i")
# Plain numbers: every operation on the enum's members would make another member.
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_CUT_OFF = int(socket.MSG_CTRUNC)
_ROOM_FOR_FD = socket.CMSG_LEN(_INT.size)
_TOO_MANY_ON_THEIR_WAY = 109  # ETOOMANYREFS
_NO_TIME = (
    "a finalizer or a signal's handler calls the node while this thread is sending to it; "
    "it can log something then, and no more"
)
_PAUSE_S = 0.01

Buffer: TypeAlias = "bytes | bytearray | memoryview"
Frame: TypeAlias = "tuple[int, int, int, bytes, Buffer]"
"""Kind, flags, id, head, payload."""


class ProtocolError(Exception):
    """The other side sent what the protocol forbids."""


class Descriptor:
    """A file descriptor and the duty to close it; it closes when nobody refers to it any more."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        """Close it; closing twice is fine."""
        if self.number >= 0:
            number, self.number = self.number, -1
            os.close(number)

    __del__ = close


class FrameReader:
    """Takes messages from a socket, larger ones put together from their pieces.

    One thread at a time may use it.
    """

    passes_fds = False
    """Whether frames may bring file descriptors."""
    fd: Descriptor | None = None
    """The one of the frame that `next` gave last; closed if this process had no room for it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._view = memoryview(bytearray(_FIRST_BUFFER))
        self._start = self._end = 0
        self._parts: dict[int, tuple[int, int, bytes, bytearray]] = {}
        self._fds: list[Descriptor] = []
        self.max_frame = DEFAULT_MAX_FRAME

    def fill(self, flags: int = 0) -> bool:
        """Receive once; False at the end of the connection.

        Raises: OSError, of that BlockingIOError with MSG_DONTWAIT and nothing there.
        """
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._view):
            self._make_room(self._end - self._start)
        if self.passes_fds:
            count = self._fill_with_fd(flags)
        else:
            count = self._connection.recv_into(self._view[self._end :], 0, flags)
        self._end += count
        return count > 0

    def _fill_with_fd(self, flags: int) -> int:
        into = [self._view[self._end :]]
        flags |= _CLOSE_ON_EXEC
        count, control, told, _ = self._connection.recvmsg_into(into, _ROOM_FOR_FD, flags)
        for _, _, data in control:
            self._fds.append(Descriptor(_INT.unpack_from(data)[0]))
        if told & _CUT_OFF and not control:  # this process could have no more
            self._fds.append(Descriptor(-1))
        return count

    def next(self) -> Frame | None:
        """The next whole message among what was received, or None.

        Raises: ProtocolError.
        """
        self.fd = None
        while (frame := self._next_frame()) is not None:
            if frame[1] & FD and self.passes_fds:
                if not self._fds:
                    raise ProtocolError("a file descriptor did not arrive")
                self.fd = self._fds.pop(0)
            if frame[0] == DATA or frame[1] & MORE:
                frame = self._join(frame)
                if frame is None:
                    continue
            return frame
        return None

    def _next_frame(self) -> Frame | None:
        start = self._start
        have = self._end - start
        if have < 16:
            return None
        length, kind, flags, head_length, number = _HEADER.unpack_from(self._view, start)
        if length > self.max_frame:
            raise ProtocolError(f"a frame of {length} bytes; at most {self.max_frame} are allowed")
        if length < _REST + head_length:
            raise ProtocolError(f"a frame of {length} bytes with a head of {head_length}")
        if have < length + 4:
            self._make_room(length + 4)
            return None
        head_at = start + 16
        payload_at = head_at + head_length
        self._start = end = start + 4 + length
        head = self._view[head_at:payload_at].tobytes()
        return kind, flags, number, head, self._view[payload_at:end].tobytes()

    def _make_room(self, needed: int) -> None:
        """Have the bytes not yet used in front of room for `needed` bytes in all."""
        rest = self._view[self._start : self._end]
        if needed > len(self._view) or self._end == len(self._view):
            size = len(self._view)
            while size <= needed:
                size *= 2
            view = memoryview(bytearray(size))
            view[: len(rest)] = rest
            self._view, self._start, self._end = view, 0, len(rest)

    def _join(self, frame: Frame) -> Frame | None:
        kind, flags, number, head, payload = frame
        if kind == DATA:
            part = self._parts.get(number)
            if part is None:
                return frame  # of a stream, whose messages are put together where they are read
            kind, first_flags, head, data = part
        elif kind in (REQUEST, RESPONSE, NOTICE):
            data = bytearray()
            first_flags = flags & ~MORE
            self._parts[number] = kind, first_flags, head, data
        else:
            raise ProtocolError(f"a frame of kind {kind} cannot go on in DATA frames")
        if len(data) + len(payload) > self.max_frame:
            raise ProtocolError(f"a message of more than {self.max_frame} bytes")
        data += payload
        if flags & MORE:
            return None
        del self._parts[number]
        return kind, first_flags, number, head, data


class _TurnLock:
    """A lock that its last holder doesn't get again while another thread waits for it.

    A plain lock, let go, is anybody's, and nearly always its last holder's again, who runs just
    then: a short message would wait for all pieces of a large one.

    Whoever has it may take it again: a finalizer, or a signal's handler, may log something, and
    strikes wherever a thread is.
    """

    def __init__(self) -> None:
        self._next = threading.RLock()
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        with self._next:  # held by the one that waits: who comes back stands behind it
            self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


class FrameWriter:
    """Sends messages; any thread may, and a message over CHUNK bytes lets others in between."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = _TurnLock()
        self._in_frame = False
        """Whether whoever has the lock is in the middle of a frame."""
        self._late: list[bytes] = []
        """Frames of those who struck there, in whole messages."""

    def send_with_fd(self, number: int, head: bytes, payload: bytes, fd: int) -> None:
        """Send a request with a file descriptor, in one frame. Raises: OSError."""
        length = _REST + len(head) + len(payload)
        data = _HEADER.pack(length, REQUEST, FD, len(head), number) + head + payload
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(fd))
        with self._lock:
            if self._in_frame:
                raise RuntimeError(_NO_TIME)
            self._in_frame = True
            try:
                while True:
                    try:
                        sent = self._connection.sendmsg((data,), (rights,))
                        break
                    except OSError as exc:
                        if exc.errno != _TOO_MANY_ON_THEIR_WAY:
                            raise
                    time.sleep(_PAUSE_S)
                self._connection.sendall(memoryview(data)[sent:])
            finally:
                self._in_frame = False
            self._send_late()

    def send(
        self, kind: int, number: int, head: bytes = b"", payload: Buffer = b"", flags: int = 0
    ) -> None:
        """Send one message; waits while the other side doesn't read. Raises: OSError."""
        if len(payload) <= CHUNK:
            self._send_frame(kind, number, head, payload, flags)
            return
        view = memoryview(payload)
        self._send_frame(kind, number, head, view[:CHUNK], flags | MORE)
        for at in range(CHUNK, len(view), CHUNK):
            more = MORE if at + CHUNK < len(view) else 0
            self._send_frame(DATA, number, b"", view[at : at + CHUNK], more)

    def _send_frame(self, kind: int, number: int, head: bytes, payload: Buffer, flags: int) -> None:
        size = len(payload)
        start = _HEADER.pack(_REST + len(head) + size, kind, flags, len(head), number) + head
        with self._lock:
            if self._in_frame:
                if kind == REQUEST:
                    raise RuntimeError(_NO_TIME)
                self._late.append(start + payload)
                return
            self._in_frame = True
            try:
                if size <= _SMALL:
                    self._connection.sendall(start + payload)
                else:
                    self._send_large(start, payload)
            finally:
                self._in_frame = False
            if self._late:
                self._send_late()

    def _send_large(self, start: bytes, payload: Buffer) -> None:
        sent = self._connection.sendmsg((start, payload))
        if sent < len(start):
            self._connection.sendall(start[sent:])
            sent = len(start)
        self._connection.sendall(memoryview(payload)[sent - len(start) :])

    def _send_late(self) -> None:
        while self._late:
            self._in_frame = True
            try:
                self._connection.sendall(self._late.pop(0))
            finally:
                self._in_frame = False
