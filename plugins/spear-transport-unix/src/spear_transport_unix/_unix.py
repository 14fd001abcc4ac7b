"""The transport ``unix``."""

from __future__ import annotations

import itertools
import os
import re
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from spear_core.api import Channel, ChannelListener, Transport
from spear_core.errors import ChannelError
from spear_core.rpc import SocketChannel
from spear_core.rpc.socket_listener import SocketListener, bind_unix, short_path

from ._config import UnixConfig
from ._sockets import connect

__all__ = ["UnixTransport"]

_SCHEME = "unix://"


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
            with short_path(path) as short:
                await connect(sock, short)
        except OSError as exc:
            sock.close()
            raise ChannelError(f"cannot connect to {address}: {exc.strerror}") from exc
        except BaseException:
            sock.close()
            raise
        return SocketChannel(sock, max_frame=self._config.max_frame_bytes)

    @asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[ChannelListener]:
        path = _path(address)
        try:
            _private_directory(path.parent)
        except OSError as exc:
            raise ChannelError(f"cannot listen at {address}: {exc.strerror}") from exc
        sock = bind_unix(path)
        inode = path.lstat().st_ino
        listener = SocketListener(sock, address, max_frame=self._config.max_frame_bytes)
        try:
            yield listener
        finally:
            with suppress(OSError):
                if path.lstat().st_ino == inode:
                    path.unlink()
            await trio.aclose_forcefully(listener)


def _path(address: str) -> Path:
    path = Path(address.removeprefix(_SCHEME))
    if not address.startswith(_SCHEME) or not path.is_absolute() or "\0" in address:
        raise ChannelError(f"{address!r} is no address of the form {_SCHEME}/absolute/path")
    if not path.name:
        raise ChannelError(f"{address!r} names a directory, not a socket in it")
    return path


def _private_directory(directory: Path) -> None:
    """Make it if it is missing. **Raises** :exc:`ChannelError` when others may write to it."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.stat()
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ChannelError(
            f"other users may put files into {directory}; make it private with"
            f" `chmod 700 {directory}` or use another directory"
        )
