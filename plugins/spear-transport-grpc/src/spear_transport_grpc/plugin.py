"""The hooks of gRPC: the front door ``grpc`` and the transport ``grpc``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from spear_core import hookimpl
from spear_core.api import (
    FrontDoorContext,
    FrontDoorSpec,
    NodeApi,
    PluginContext,
    Transport,
    TransportSpec,
)

from ._config import ChannelConfig, DoorConfig

__all__ = ["connect", "open_door", "open_transport", "spear_front_doors", "spear_transports"]


@asynccontextmanager
async def open_door(context: FrontDoorContext, config: DoorConfig) -> AsyncIterator[str]:
    """The front door ``grpc``."""
    from ._door import open_grpc_door

    async with open_grpc_door(context, config) as urls:
        yield urls


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[NodeApi]:
    """The node behind a URL; see :func:`spear_transport_grpc._connect.connect`."""
    from ._connect import connect as connect_to

    async with connect_to(url) as node:
        yield node


@asynccontextmanager
async def open_transport(context: PluginContext, config: ChannelConfig) -> AsyncIterator[Transport]:
    """The transport ``grpc``."""
    from ._transport import open_grpc_transport

    async with open_grpc_transport(context, config) as transport:
        yield transport


@hookimpl
def spear_front_doors() -> Iterable[FrontDoorSpec[Any]]:
    """Declare ``grpc``."""
    return [
        FrontDoorSpec(
            name="grpc",
            schemes=("grpc", "grpcs", "grpc+unix"),
            open=open_door,
            connect=connect,
            config_cls=DoorConfig,
        )
    ]


@hookimpl
def spear_transports() -> Iterable[TransportSpec[Any]]:
    """Declare ``grpc``."""
    return [TransportSpec(name="grpc", open=open_transport, config_cls=ChannelConfig)]
