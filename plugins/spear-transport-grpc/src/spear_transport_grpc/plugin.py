"""The hooks of gRPC: the front door ``grpc`` and the transport ``grpc``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from spear_core import hookimpl
from spear_core.api import FrontDoorContext, FrontDoorSpec, NodeApi

from ._config import DoorConfig

__all__ = ["connect", "open_door", "spear_front_doors"]


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
