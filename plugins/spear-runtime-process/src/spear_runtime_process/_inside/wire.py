"""Messages between node and launcher: JSON with a length before it, file descriptors beside it."""

from __future__ import annotations

import array
import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("=I")
_MAX_DESCRIPTORS = 16


def pack(message: dict[str, Any]) -> bytes:
    """One message as bytes."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


class Reader:
    """Puts messages and their descriptors together again; each names its number in `fds`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._descriptors: list[int] = []

    def receive(self) -> bool:
        """Take in what has arrived; False at the end of the connection.

        Raises: BlockingIOError on a non-blocking socket with nothing to read.
        """
        space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4)
        try:
            data, ancillary, _, _ = self._connection.recvmsg(
                1 << 16, space, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors += array.array("i", content[: len(content) // 4 * 4])
        self._buffer += data
        return bool(data)

    def next(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next whole message with its descriptors, or None."""
        if len(self._buffer) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        message: dict[str, Any] = json.loads(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        count = message.get("fds", 0)
        descriptors, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return message, descriptors
