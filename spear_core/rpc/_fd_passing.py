"""File descriptors beside the bytes of a Unix socket (``man 7 unix``, SCM_RIGHTS).

The kernel hands one over with the first of the bytes it was sent with, and ends the read there; so
one that has come belongs to the frame that is then under way, or was completed just now.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Sequence
from struct import Struct

import attrs

from spear_core.api import Message, MessageFlag, OwnedFd
from spear_core.errors import ProtocolError

__all__ = ["FdsInFlightError", "IncomingFds", "send_with_fd"]

_INT = Struct("=i")
_ROOM = socket.CMSG_LEN(_INT.size)
"""For exactly one: the kernel closes what has no room. (CMSG_SPACE would leave room for two.)"""
# Plain numbers: every operation on the enum's members would make another member.
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_CUT_OFF = int(socket.MSG_CTRUNC)


class FdsInFlightError(Exception):
    """Too many descriptors are on their way for the kernel to take one more."""


def send_with_fd(
    sock: socket.socket, buffers: Sequence[bytes | bytearray | memoryview], fd: OwnedFd
) -> int:
    """Write what fits, at least a byte, the descriptor with it; how much that was.

    **Raises** :exc:`BlockingIOError`, :exc:`FdsInFlightError`, other :exc:`OSError`.
    """
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(fd.fileno()))
    try:
        return sock.sendmsg(buffers, [rights])
    except OSError as exc:
        if exc.errno == errno.ETOOMANYREFS:
            raise FdsInFlightError from exc
        raise


class IncomingFds:
    """What has come and whose message is not complete: one at most, or the peer is at fault."""

    def __init__(self) -> None:
        self._waiting: deque[OwnedFd] = deque()

    def receive(self, sock: socket.socket, buffer: memoryview) -> int:
        """``recv_into``, and keep the descriptor that came with it.

        **Raises** :exc:`OSError`, also when this process has no descriptor left for it, and
        :exc:`~spear_core.errors.ProtocolError` when several came at once.
        """
        count, control, flags, _ = sock.recvmsg_into([buffer], _ROOM, _CLOSE_ON_EXEC)
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._waiting.append(OwnedFd(_INT.unpack_from(data)[0]))
        if flags & _CUT_OFF:
            self.close()
            if not control:
                raise OSError(errno.EMFILE, "no room for a file descriptor that was sent")
            raise ProtocolError("several file descriptors with one message")
        return count

    def attach(self, message: Message | None, *, mid_frame: bool) -> Message | None:
        """The message the parser gave, with the descriptor that belongs to it.

        **Raises** :exc:`~spear_core.errors.ProtocolError` when what has come and what the frames
        announce do not agree.
        """
        if message is None:
            if len(self._waiting) > mid_frame:
                self.close()
                raise ProtocolError("a file descriptor that belongs to no message")
            return None
        if not message.flags & MessageFlag.FD:
            return message
        if not self._waiting:
            raise ProtocolError("a message without the file descriptor that it announces")
        flags = message.flags & ~MessageFlag.FD
        return attrs.evolve(message, flags=flags, fd=self._waiting.popleft())

    def close(self) -> None:
        """Close what waits."""
        while self._waiting:
            self._waiting.popleft().close()
