"""The front door ``grpc``.

On Unix sockets, which is all it does by default, it costs nothing until somebody comes: a socket
of our own listens, and only the first client makes the node load grpcio (100 ms and 20 MiB). The
server of C-core then takes over the path. Whoever came through ours before is passed on to it, and
asked to come again by itself after its first call.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from spear_core.api import FrontDoorContext
from spear_core.errors import ChannelError, ConfigError, SpearError
from spear_core.rpc.socket_listener import bind_unix, short_path
from spear_transport_grpc._address import TcpAddress, UnixAddress, parse
from spear_transport_grpc._config import DoorConfig
from spear_transport_grpc._passing import pass_on

__all__ = ["open_grpc_door"]

_PAUSE_S = 0.1


@attrs.frozen
class _Socket:
    """A Unix socket of ours that waits for the first client."""

    address: UnixAddress
    listener: trio.socket.SocketType


@asynccontextmanager
async def open_grpc_door(context: FrontDoorContext, config: DoorConfig) -> AsyncIterator[str]:
    """Serve while the block lasts; yields the URLs, with spaces in between."""
    places = tuple(_place(entry, context.node_dir) for entry in config.listen)
    _refuse_the_careless(places, config)
    failure: Exception | None = None
    door = _Door(context, config, places)
    try:
        async with trio.open_nursery() as nursery:
            if any(isinstance(place, TcpAddress) for place in places):
                urls = await nursery.start(door.serve)
            else:
                urls = door.listen()
                nursery.start_soon(door.wait_for_first, nursery)
            try:
                yield " ".join(urls)
            except Exception as raised:  # barrier: carried past the nursery, as it is
                failure = raised
            door.leaving.set()
    except* SpearError as group:
        failure = failure or _only(group)
    finally:
        door.remove()
    if failure is not None:
        raise failure


def _only(group: BaseExceptionGroup[SpearError]) -> Exception:
    """What kept the door from opening; nothing else is raised in its nursery."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error


class _Door:
    """One opening of the front door."""

    def __init__(
        self,
        context: FrontDoorContext,
        config: DoorConfig,
        places: tuple[TcpAddress | UnixAddress, ...],
    ) -> None:
        self._context = context
        self._config = config
        self._places = places
        self._sockets: list[_Socket] = []
        self._wanted = trio.Event()
        self._decided = trio.Event()
        self._serving = False
        self._stopped = trio.Event()
        self._files: dict[Path, os.stat_result] = {}
        self.leaving = trio.Event()

    def listen(self) -> list[str]:
        """Put up our own sockets; the URLs. **Raises** :exc:`ChannelError`."""
        for place in self._places:
            assert isinstance(place, UnixAddress)
            listener = trio.socket.from_stdlib_socket(bind_unix(place.path))
            self._sockets.append(_Socket(place, listener))
            self._files[place.path] = place.path.lstat()
        return [each.address.url for each in self._sockets]

    async def wait_for_first(self, nursery: trio.Nursery) -> None:
        """Watch our sockets; with the first client, open the real server."""
        async with trio.open_nursery() as passing:
            async with trio.open_nursery() as watching:
                for each in self._sockets:
                    watching.start_soon(self._watch, each, passing)
                watching.start_soon(self._cancel_when_leaving, watching.cancel_scope)
                await self._wanted.wait()
                try:
                    await nursery.start(self.serve)
                except Exception as error:  # barrier: the node goes on without this door
                    self._context.plugin.log.error("the gRPC front door cannot open: %s", error)
                    self.remove()
                    watching.cancel_scope.cancel()
                else:
                    self._serving = True
                self._decided.set()
            if self._serving:
                await self._stopped.wait()  # calls may be under way on what we pass
            passing.cancel_scope.cancel()

    async def _cancel_when_leaving(self, scope: trio.CancelScope) -> None:
        await self.leaving.wait()
        scope.cancel()

    async def _watch(self, each: _Socket, passing: trio.Nursery) -> None:
        while True:
            try:
                connection, _ = await each.listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                self._context.plugin.log.warning("a client of gRPC has to wait: %s", error)
                await trio.sleep(_PAUSE_S)
                continue
            self._wanted.set()
            passing.start_soon(self._pass, trio.SocketStream(connection), each.address.path)

    async def _pass(self, client: trio.SocketStream, path: Path) -> None:
        """Connect a client that came early to the real server, once that is there."""
        async with client:
            await self._decided.wait()
            if not self._serving:
                return
            inner = trio.socket.socket(socket.AF_UNIX)
            server = trio.SocketStream(inner)
            with suppress(OSError, trio.BrokenResourceError):
                async with server:
                    with short_path(path) as short:
                        await inner.connect(short)
                    await pass_on(client, server)

    async def serve(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the real server until we leave."""
        await trio.to_thread.run_sync(_load)
        from spear_transport_grpc._server import open_door_server

        try:
            async with open_door_server(self._context, self._config, self._places) as urls:
                for place in self._places:
                    if isinstance(place, UnixAddress):
                        self._files[place.path] = place.path.lstat()
                task_status.started(list(urls))
                await self.leaving.wait()
        except OSError as error:
            raise ChannelError(f"the gRPC front door cannot open: {error}") from error
        finally:
            self._stopped.set()

    def remove(self) -> None:
        """Close our sockets and remove the files that are still ours."""
        for each in self._sockets:
            each.listener.close()
        for path, ours in self._files.items():
            with suppress(OSError):
                if os.path.samestat(ours, path.lstat()):  # else somebody began anew in its place
                    path.unlink()


def _load() -> None:
    """Import grpcio, in a thread: it takes a while, and the node has other callers."""
    from spear_transport_grpc import _server  # noqa: F401 - for what it brings along
    from spear_transport_grpc._bridge._check import check_bridge

    check_bridge()


def _place(entry: str, node_dir: Path) -> TcpAddress | UnixAddress:
    """An entry of ``listen``. **Raises** :exc:`ConfigError`."""
    if "://" not in entry:
        return UnixAddress(node_dir / entry)
    try:
        place = parse(entry)
    except ValueError as error:
        raise ConfigError(f"plugins.transport-grpc.listen: {error}") from error
    if isinstance(place, UnixAddress):
        _private(place.path.parent)
    return place


def _private(directory: Path) -> None:
    try:
        found = directory.stat()
    except OSError as error:
        raise ConfigError(
            f"plugins.transport-grpc.listen: {directory}: {error.strerror}"
        ) from error
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"plugins.transport-grpc.listen: other users may put files into {directory}; make it"
            f" private with `chmod 700 {directory}` or use another directory"
        )


def _refuse_the_careless(places: tuple[TcpAddress | UnixAddress, ...], config: DoorConfig) -> None:
    """**Raises** :exc:`ConfigError` for a door through which strangers could run code here."""
    for place in places:
        if not isinstance(place, TcpAddress):
            continue
        if place.tls and not (config.tls_cert and config.tls_key):
            raise ConfigError(
                f"plugins.transport-grpc: {place.url(place.port)} needs tls_cert and tls_key"
            )
        if place.is_local or config.insecure or (place.tls and config.client_ca):
            continue
        what = "asks clients for no certificate" if place.tls else "is not encrypted"
        raise ConfigError(
            f"plugins.transport-grpc.listen: {place.url(place.port)} can be reached from other"
            f" machines and {what}: whoever reaches it could run code here. Use grpcs:// with"
            " client_ca, or say insecure = true"
        )
