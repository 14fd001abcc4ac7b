"""What the front door serves once grpcio is loaded."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from spear_core.api import FrontDoorContext
from spear_transport_grpc._address import TcpAddress, UnixAddress, short_target
from spear_transport_grpc._bridge import Port, open_server
from spear_transport_grpc._config import DoorConfig
from spear_transport_grpc._health import health_methods, reflection_methods
from spear_transport_grpc._object_service import ObjectServices
from spear_transport_grpc._services import NodeServices

__all__ = ["open_door_server"]

_LAST_ANSWERS_S = 5.0
"""How long calls under way may take to be answered once the node has ended its tasks."""
_SIGN_OF_LIFE_S = 20.0
"""How long a client may take to say that it is there."""
_WINDOW = 1 << 20
"""Bytes of a stream that a client may send before a function reads them."""


def _options(config: DoorConfig) -> Mapping[str, int | str]:
    return {
        "grpc.max_receive_message_length": config.max_message_bytes,
        "grpc.max_send_message_length": config.max_message_bytes,
        "grpc.max_concurrent_streams": config.max_concurrent_streams,
        "grpc.keepalive_time_ms": int(config.keepalive_s * 1000),
        "grpc.keepalive_timeout_ms": int(_SIGN_OF_LIFE_S * 1000),
        "grpc.http2.ping_timeout_ms": int(_SIGN_OF_LIFE_S * 1000),  # the newer name, else a minute
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.bdp_probe": 0,  # it would let each stream's buffer grow to several MiB
        "grpc.http2.lookahead_bytes": _WINDOW,
    }


@asynccontextmanager
async def open_door_server(
    context: FrontDoorContext,
    config: DoorConfig,
    places: tuple[TcpAddress | UnixAddress, ...],
) -> AsyncIterator[tuple[str, ...]]:
    """Serve the node at these places while the block lasts; yields their URLs.

    A Unix socket appears at its path in one step, with mode 0600, in place of what is there.
    **Raises** :exc:`OSError`, :exc:`~spear_core.errors.ConfigError`.
    """
    services = NodeServices(
        context.node,
        task_timeout_s=context.plugin.spearlet_config.execution.task_timeout_ms / 1000,
        max_artifact=context.plugin.spearlet_config.artifacts.max_bytes,
        certificates=bool(config.client_ca),
    )
    leaving = trio.Event()
    methods = {**services.methods(), **ObjectServices(context.node, leaving).methods()}
    names = {method.split("/")[1] for method in methods}
    methods |= health_methods(names, leaving)
    methods |= reflection_methods(names, leaving)
    async with AsyncExitStack() as stack:
        ports, hidden = [], []
        for place in places:
            if isinstance(place, UnixAddress):
                before = place.path.with_name(f".{place.path.name}.{os.getpid()}")
                hidden.append((before, place.path))
                ports.append(Port(address=stack.enter_context(short_target(before))))
            else:
                ports.append(_tcp_port(place, config))
        server = await stack.enter_async_context(
            open_server(tuple(ports), methods, grace_s=_LAST_ANSWERS_S, options=_options(config))
        )
        for before, path in hidden:
            _reveal(before, path)
        try:
            yield tuple(
                place.url if isinstance(place, UnixAddress) else place.url(port)
                for place, port in zip(places, server.ports, strict=True)
            )
        finally:
            leaving.set()


def _tcp_port(place: TcpAddress, config: DoorConfig) -> Port:
    if not place.tls:
        return Port(address=place.target)
    from spear_transport_grpc._tls import server_credentials

    credentials = server_credentials(config.tls_cert, config.tls_key, config.client_ca)
    return Port(address=place.target, credentials=credentials)


def _reveal(before: Path, path: Path) -> None:
    before.chmod(0o600)  # nobody knows its name yet, and the directory is private
    before.rename(path)
