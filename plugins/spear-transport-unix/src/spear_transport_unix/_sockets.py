"""What both kinds of socket have in common: connecting and accepting without blocking."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import trio

from spear_core.api import Channel, ChannelListener
from spear_core.errors import ChannelClosedError, ChannelError
from spear_core.rpc import SocketChannel

__all__ = ["SocketListener", "connect"]

_PAUSE_S = 0.02
"""Between two tries when a queue or a table is full."""
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


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


class SocketListener(ChannelListener):
    """Accepts connections on a listening, non-blocking socket, which it owns."""

    def __init__(
        self, sock: socket.socket, address: str, make: Callable[[socket.socket], SocketChannel]
    ) -> None:
        self.address = address
        self._sock = sock
        self._make = make
        self._closed = False
        self._turn = trio.Lock()

    async def accept(self) -> Channel:
        await trio.lowlevel.checkpoint()
        async with self._turn:
            while not self._closed:
                try:
                    connection, _ = self._sock.accept()
                except BlockingIOError:
                    await self._wait()
                except OSError as exc:
                    if exc.errno in _FULL:
                        await trio.sleep(_PAUSE_S)
                    elif exc.errno != errno.ECONNABORTED:
                        raise ChannelError(
                            f"accepting at {self.address} failed: {exc.strerror}"
                        ) from exc
                else:
                    return self._make(connection)
        raise ChannelClosedError(f"the listener at {self.address} is closed")

    async def _wait(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._sock)
        except trio.ClosedResourceError:
            raise ChannelClosedError(f"the listener at {self.address} is closed") from None

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.checkpoint()
