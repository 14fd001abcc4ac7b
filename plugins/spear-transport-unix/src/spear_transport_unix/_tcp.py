"""The transport ``tcp``: a port per listener, on loopback unless configured otherwise."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import trio

from spear_core.api import Channel, ChannelListener, PluginContext, Transport
from spear_core.errors import ChannelError
from spear_core.rpc import SocketChannel
from spear_core.rpc.socket_listener import SocketListener
from spear_transport_unix._config import SocketConfig

__all__ = ["TcpTransport", "open_tcp"]

_BACKLOG = 128


class TcpTransport(Transport):
    """Channels over TCP; addresses are ``tcp://host:port``, port 0 for any free one."""

    def __init__(self, host: str, *, max_frame: int) -> None:
        self._host = host
        self._max_frame = max_frame

    def new_address(self, name: str) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"tcp://{host}:0"

    async def connect(self, address: str) -> Channel:
        host, port = _host_and_port(address)
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ChannelError(f"cannot connect to {address}: {reason}") from error
        # The channel works on the bare socket; the stream gives its descriptor away.
        sock = socket.socket(fileno=stream.socket.detach())
        _no_delay(sock)
        return SocketChannel(sock, max_frame=self._max_frame)

    @asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[ChannelListener]:
        host, port = _host_and_port(address)
        await trio.lowlevel.checkpoint()
        sock = await _bind(host, port, address)
        shown = f"[{host}]" if ":" in host else host
        listener = SocketListener(
            sock,
            f"tcp://{shown}:{sock.getsockname()[1]}",
            max_frame=self._max_frame,
            prepare=_no_delay,
        )
        try:
            yield listener
        finally:
            await trio.aclose_forcefully(listener)


async def _bind(host: str, port: int, address: str) -> socket.socket:
    try:
        ((family, *_, target), *_others) = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ChannelError(f"cannot listen on {address}: {error.strerror}") from error
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ChannelError(f"cannot listen on {address}: {error.strerror}") from error
    return sock


def _no_delay(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.scheme != "tcp" or parts.path:
        raise ChannelError(f"{address!r} is no address of the form tcp://host:port")
    return host, port


@asynccontextmanager
async def open_tcp(context: PluginContext, config: SocketConfig) -> AsyncIterator[Transport]:
    """The transport for one node."""
    yield TcpTransport(config.tcp_host, max_frame=config.max_frame)
