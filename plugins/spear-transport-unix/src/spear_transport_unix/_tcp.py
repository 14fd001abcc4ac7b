"""The transport ``tcp``."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import attrs
import trio

from spear_core.api import Channel, ChannelListener, Transport
from spear_core.errors import ChannelError
from spear_core.rpc import SocketChannel
from spear_core.rpc.socket_listener import SocketListener

from ._config import TcpConfig
from ._sockets import connect

__all__ = ["TcpTransport"]

_BACKLOG = 64


@attrs.frozen
class _Endpoint:
    host: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


class TcpTransport(Transport):
    """A port for each listener, on loopback unless configured otherwise."""

    def __init__(self, config: TcpConfig) -> None:
        self._config = config

    def new_address(self, name: str) -> str:
        """The kernel picks the port; the listener's ``address`` says which."""
        return str(_Endpoint(self._config.tcp_host, 0))

    async def connect(self, address: str) -> Channel:
        to = _endpoint(address)
        sock = socket.socket(to.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await connect(sock, (to.host, to.port))
            if sock.getsockname() == sock.getpeername():
                # A port of the ephemeral range that nobody listens on can reach itself.
                raise ConnectionRefusedError(0, "nobody listens there")
        except OSError as exc:
            sock.close()
            raise ChannelError(f"cannot connect to {address}: {exc.strerror}") from exc
        except BaseException:
            sock.close()
            raise
        _no_delay(sock)
        return SocketChannel(sock, max_frame=self._config.max_frame_bytes)

    @asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[ChannelListener]:
        at = _endpoint(address)
        sock = socket.socket(at.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((at.host, at.port))
            sock.listen(_BACKLOG)
        except OSError as exc:
            sock.close()
            raise ChannelError(f"cannot listen at {address}: {exc.strerror}") from exc
        bound = _Endpoint(at.host, sock.getsockname()[1])
        listener = SocketListener(
            sock, str(bound), max_frame=self._config.max_frame_bytes, prepare=_no_delay
        )
        try:
            yield listener
        finally:
            await trio.aclose_forcefully(listener)


def _no_delay(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _endpoint(address: str) -> _Endpoint:
    """The parts of ``tcp://host:port``. An IP address, because looking a name up takes long."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
        if parts.scheme == "tcp" and host and port is not None and not parts.path:
            host = "127.0.0.1" if host == "localhost" else host
            return _Endpoint(str(ipaddress.ip_address(host)), port)
    except ValueError:
        pass
    raise ChannelError(f"{address!r} is no address of the form tcp://IP-ADDRESS:PORT")
