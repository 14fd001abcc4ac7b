"""The hooks of the transports ``unix`` and ``tcp``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from spear_core import hookimpl
from spear_core.api import PluginContext, Transport, TransportSpec

from ._config import TcpConfig, UnixConfig

__all__ = ["open_tcp", "open_unix", "spear_transports"]


@asynccontextmanager
async def open_unix(context: PluginContext, config: UnixConfig) -> AsyncIterator[Transport]:
    """The transport ``unix``; its sockets lie in a directory of its own under ``run_dir``."""
    from ._unix import UnixTransport

    yield UnixTransport(context.run_dir, config)


@asynccontextmanager
async def open_tcp(context: PluginContext, config: TcpConfig) -> AsyncIterator[Transport]:
    """The transport ``tcp``."""
    from ._tcp import TcpTransport

    yield TcpTransport(config)


@hookimpl
def spear_transports() -> Iterable[TransportSpec[Any]]:
    """Declare ``unix`` and ``tcp``."""
    return [
        TransportSpec(name="unix", open=open_unix, config_cls=UnixConfig),
        TransportSpec(name="tcp", open=open_tcp, config_cls=TcpConfig),
    ]
