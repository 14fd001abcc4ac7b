"""Listening for socket channels, and Unix socket paths of any length."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from spear_core.api import ChannelListener
from spear_core.errors import ChannelClosedError, ChannelError
from spear_core.rpc.framing import MAX_FRAME
from spear_core.rpc.socket_channel import SocketChannel

__all__ = ["SocketListener", "bind_unix", "short_path"]

_BACKLOG = 1024
"""Who connects while it is full is refused, and at 128 a script's thousand clients were."""
_ACCEPT_PAUSE_S = 0.1
"""Pause after the process ran out of file descriptors."""
_log = logging.getLogger("spear.rpc")


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path of at most 107 bytes (``man 7 unix``) to the same place, while the block lasts.

    **Raises** :exc:`OSError` when the directory does not exist.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def bind_unix(path: Path) -> socket.socket:
    """A listening Unix socket with mode 0600, private from the moment it exists.

    A socket that nobody listens on any more is replaced. **Raises**
    :exc:`~spear_core.errors.ChannelError` with the reason.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with short_path(path) as short:
            os.fchmod(listener.fileno(), 0o600)  # bind gives the file the socket's mode
            try:
                listener.bind(short)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                _remove_stale(path, short)
                listener.bind(short)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ChannelError(f"cannot listen on {path}: {error.strerror}") from error
    except ChannelError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path, short: str) -> None:
    """Remove the socket of a listener that is gone. **Raises** :exc:`ChannelError` for others."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ChannelError(f"{path} exists and is no socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(short)
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full, so it is alive
    raise ChannelError(f"somebody listens on {path} already")


class SocketListener(ChannelListener):
    """Accepts connections on a listening socket, which it owns from now on."""

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        *,
        max_frame: int = MAX_FRAME,
        prepare: Callable[[socket.socket], None] | None = None,
    ) -> None:
        self.address = address
        self._sock = sock
        self._max_frame = max_frame
        self._prepare = prepare
        self._closed = False

    async def accept(self) -> SocketChannel:
        await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise ChannelClosedError(f"the listener at {self.address} is closed")
            try:
                connection, _ = self._sock.accept()
            except BlockingIOError:
                await self._wait()
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    raise ChannelError(f"{self.address}: {error.strerror}") from error
                _log.warning("%s: a peer has to wait: %s", self.address, error.strerror)
                await trio.sleep(_ACCEPT_PAUSE_S)
            else:
                if self._prepare is not None:
                    self._prepare(connection)
                return SocketChannel(connection, max_frame=self._max_frame)

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
