"""The transport ``unix``."""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from spear_core.api import Channel, ChannelListener, Transport
from spear_core.errors import ChannelError
from spear_core.rpc import SocketChannel

from ._config import UnixConfig
from ._sockets import SocketListener, connect

__all__ = ["UnixTransport"]

_SCHEME = "unix://"
_LONGEST_PATH = 107
"""Bytes of a path that fit into a socket address on Linux (``unix(7)``)."""
_BACKLOG = 64


class UnixTransport(Transport):
    """Sockets with mode 0600 in a directory with mode 0700."""

    def __init__(self, run_dir: Path, config: UnixConfig) -> None:
        self._directory = run_dir / "u"
        self._config = config
        self._numbers = itertools.count(1)

    def new_address(self, name: str) -> str:
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:16]
        return f"{_SCHEME}{self._directory}/{next(self._numbers)}-{readable}"

    async def connect(self, address: str) -> Channel:
        path = _path(address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with _fitting(path) as fitting:
                await connect(sock, fitting)
        except OSError as exc:
            sock.close()
            raise ChannelError(f"cannot connect to {address}: {exc.strerror}") from exc
        except BaseException:
            sock.close()
            raise
        return self._channel(sock)

    @asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[ChannelListener]:
        path = _path(address)
        try:
            _private_directory(path.parent)
            sock = _bound(path)
        except OSError as exc:
            raise ChannelError(f"cannot listen at {address}: {exc.strerror}") from exc
        inode = path.lstat().st_ino
        listener = SocketListener(sock, address, self._channel)
        try:
            yield listener
        finally:
            with suppress(OSError):
                if path.lstat().st_ino == inode:
                    path.unlink()
            await trio.aclose_forcefully(listener)

    def _channel(self, sock: socket.socket) -> SocketChannel:
        return SocketChannel(sock, max_frame=self._config.max_frame_bytes)


def _path(address: str) -> Path:
    path = Path(address.removeprefix(_SCHEME))
    if not address.startswith(_SCHEME) or not path.is_absolute() or "\0" in address:
        raise ChannelError(f"{address!r} is no address of the form {_SCHEME}/absolute/path")
    if not path.name:
        raise ChannelError(f"{address!r} names a directory, not a socket in it")
    return path


@contextmanager
def _fitting(path: Path) -> Iterator[str]:
    """A path to the same place that fits into a socket address, while the block lasts."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _private_directory(directory: Path) -> None:
    """Make it if it is missing. **Raises** :exc:`ChannelError` when others may write to it."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.stat()
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ChannelError(
            f"other users may put files into {directory}; make it private with"
            f" `chmod 700 {directory}` or use another directory"
        )


def _bound(path: Path) -> socket.socket:
    """A socket listening at ``path``, private from the moment it exists."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(sock.fileno(), 0o600)  # the file that bind makes inherits it
        with _fitting(path) as fitting:
            try:
                sock.bind(fitting)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                _remove_stale(path, fitting)
                sock.bind(fitting)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path, fitting: str) -> None:
    """Remove the socket of a listener that is gone. **Raises** :exc:`ChannelError` for others."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ChannelError(f"{path} exists and is no socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(fitting)
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full, so it is alive
    raise ChannelError(f"somebody listens at {path} already")
