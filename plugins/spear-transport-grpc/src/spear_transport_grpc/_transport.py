"""The transport ``grpc``: one port for all instances, one call for each."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import attrs
import trio

from spear_core.api import Channel, ChannelListener, PluginContext, Transport
from spear_core.errors import ChannelClosedError, ChannelError, ConfigError
from spear_transport_grpc._bridge import (
    ClientCall,
    ClientChannel,
    Port,
    RpcError,
    ServerCall,
    StatusCode,
    Streaming,
    open_channel,
    open_server,
)
from spear_transport_grpc._channel import CallerPath, GrpcChannel, HandlerPath
from spear_transport_grpc._config import ChannelConfig

__all__ = ["open_grpc_transport"]

_METHOD = "/spear.v1.ChannelService/Connect"
_NAME = "spear-channel"
"""The metadata that says which listener a call is for."""
_FAREWELL_S = 1.0
"""How long a closed channel may take to send what is left, and its peer to see the end."""


@attrs.frozen
class _Address:
    """``grpc://host:port/name``."""

    host: str
    port: int
    name: str

    @property
    def target(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"grpc://{self.target}/{self.name}"


class _Listener(ChannelListener):
    def __init__(self, address: str) -> None:
        self.address = address
        self._offer, self._accepted = trio.open_memory_channel[GrpcChannel](math.inf)

    def offer(self, channel: GrpcChannel) -> None:
        self._offer.send_nowait(channel)

    async def accept(self) -> Channel:
        try:
            return await self._accepted.receive()
        except trio.ClosedResourceError:
            raise ChannelClosedError(f"the listener at {self.address} is closed") from None

    async def aclose(self) -> None:
        while True:  # who has connected and was never accepted hears it
            try:
                await self._accepted.receive_nowait().aclose()
            except (trio.WouldBlock, trio.ClosedResourceError):
                break
        self._accepted.close()
        self._offer.close()
        await trio.lowlevel.checkpoint()


class GrpcTransport(Transport):
    """Opened by :func:`open_grpc_transport`.

    :param nursery: runs the server and the tasks of connected channels.
    :param connections: closed after all of these.
    """

    def __init__(
        self, config: ChannelConfig, nursery: trio.Nursery, connections: AsyncExitStack
    ) -> None:
        self._config = config
        self._nursery = nursery
        self._numbers = itertools.count(1)
        self._listeners: dict[str, _Listener] = {}
        self._port = 0
        self._starting = trio.Lock()
        self._channels: dict[str, ClientChannel] = {}
        self._connections = connections
        self._tasks = 0
        self._idle = trio.Event()
        self.leaving = trio.Event()

    def new_address(self, name: str) -> str:
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:32]
        number = next(self._numbers)
        return str(_Address(self._config.channel_host, self._port, f"{number}-{readable}"))

    # ---- connecting

    async def connect(self, address: str) -> Channel:
        to = _parse(address)
        await trio.lowlevel.checkpoint()
        call = ClientCall(await self._client(to.target))
        call.begin(_METHOD, ((_NAME, to.name),))
        try:
            await call.wait_accepted()
        except RpcError as error:
            raise ChannelError(f"cannot connect to {address}: {error.details}") from error
        except BaseException:
            call.cancel()
            raise
        channel = GrpcChannel(CallerPath(call), max_message=self._config.max_message_bytes)
        self._tasks += 1
        self._nursery.start_soon(self._keep, channel, call)
        return channel

    async def _client(self, target: str) -> ClientChannel:
        """The connection to there; channels share it."""
        async with self._starting:
            if target not in self._channels:
                self._channels[target] = await self._connections.enter_async_context(
                    open_channel(
                        target, options=self._options(), credentials=_client_tls(self._config)
                    )
                )
            return self._channels[target]

    async def _keep(self, channel: GrpcChannel, call: ClientCall) -> None:
        try:
            await channel.run()
            with trio.move_on_after(_FAREWELL_S):
                if not call.ended:
                    await channel.say_end()
                    await call.send_eof()
                await call.wait_ended()
        finally:
            call.cancel()
            with trio.CancelScope(shield=True):  # C-core answers a cancel at once
                await call.wait_ended()
            self._tasks -= 1
            if not self._tasks:
                self._idle.set()

    # ---- listening

    @asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[ChannelListener]:
        at = _parse(address)
        async with self._starting:
            if not self._port:
                port = Port(address=at.target, credentials=_server_tls(self._config))
                self._port = await self._nursery.start(self._serve, port)
        if at.host != self._config.channel_host or at.port not in (0, self._port):
            raise ChannelError(f"cannot listen at {address}: this node's port is {self._port}")
        if at.name in self._listeners:
            raise ChannelError(f"cannot listen at {address}: somebody does already")
        listener = _Listener(str(attrs.evolve(at, port=self._port)))
        self._listeners[at.name] = listener
        try:
            yield listener
        finally:
            del self._listeners[at.name]
            await trio.aclose_forcefully(listener)

    async def _serve(
        self, port: Port, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        methods = {_METHOD: Streaming(self._take)}
        try:
            async with open_server(
                (port,), methods, grace_s=_FAREWELL_S, options=self._options()
            ) as server:
                task_status.started(server.ports[0])
                await self.leaving.wait()
        except OSError as error:
            raise ChannelError(str(error)) from error

    async def _take(self, call: ServerCall) -> None:
        listener = self._listeners.get(call.header(_NAME))
        if listener is None:
            raise RpcError(StatusCode.NOT_FOUND, "nobody listens there")
        channel = GrpcChannel(HandlerPath(call), max_message=self._config.max_message_bytes)
        call.accept()
        listener.offer(channel)
        await channel.run()

    def _options(self) -> Mapping[str, int | str]:
        return {
            "grpc.max_receive_message_length": self._config.max_message_bytes,
            "grpc.max_send_message_length": self._config.max_message_bytes,
            "grpc.http2.bdp_probe": 0,  # it would let each channel's buffer grow to several MiB
        }

    async def leave(self) -> None:
        """End what is open."""
        self.leaving.set()
        with trio.move_on_after(_FAREWELL_S):
            if self._tasks:
                await self._idle.wait()
        self._nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_grpc_transport(
    context: PluginContext, config: ChannelConfig
) -> AsyncIterator[Transport]:
    """The transport while the block lasts."""
    await trio.to_thread.run_sync(_check)
    failure: Exception | None = None
    async with AsyncExitStack() as connections, trio.open_nursery() as nursery:
        transport = GrpcTransport(config, nursery, connections)
        try:
            yield transport
        except Exception as raised:  # barrier: carried past the nursery, as it is
            failure = raised
        await transport.leave()
    if failure is not None:
        raise failure


def _check() -> None:
    from spear_transport_grpc._bridge._check import check_bridge

    check_bridge()


def _server_tls(config: ChannelConfig) -> object | None:
    if not config.channel_tls:
        return None
    if not (config.tls_cert and config.tls_key):
        raise ConfigError("plugins.transport-grpc: channel_tls needs tls_cert and tls_key")
    from spear_transport_grpc._tls import server_credentials

    return server_credentials(config.tls_cert, config.tls_key, "")


def _client_tls(config: ChannelConfig) -> object | None:
    if not config.channel_tls:
        return None
    from spear_transport_grpc._tls import client_credentials

    return client_credentials({"ca": config.channel_ca or config.tls_cert})


def _parse(address: str) -> _Address:
    try:
        parts = urlsplit(address)
        if parts.scheme == "grpc" and parts.hostname and parts.port is not None:
            name = parts.path.removeprefix("/")
            if re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name):
                return _Address(parts.hostname, parts.port, name)
    except ValueError:
        pass
    raise ChannelError(f"{address!r} is no address of the form grpc://HOST:PORT/NAME")
