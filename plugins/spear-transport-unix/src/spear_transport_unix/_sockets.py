"""What both kinds of socket have in common: connecting without blocking."""

from __future__ import annotations

import errno
import os
import socket

import trio

__all__ = ["connect"]

_PAUSE_S = 0.02
"""Between two tries when the listener's queue is full."""


async def connect(sock: socket.socket, address: object) -> None:
    """Connect a non-blocking socket. **Raises** :exc:`OSError`."""
    while True:
        try:
            sock.connect(address)  # type: ignore[arg-type]  # str or tuple, as the family has it
        except BlockingIOError as exc:
            if exc.errno == errno.EINPROGRESS:
                break
            await trio.sleep(_PAUSE_S)  # a Unix listener's queue is full
        else:
            await trio.lowlevel.checkpoint()
            return
    await trio.lowlevel.wait_writable(sock)
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))
