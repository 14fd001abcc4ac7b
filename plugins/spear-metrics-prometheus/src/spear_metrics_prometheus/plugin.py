"""The hook of the metrics port: a front door that only tells, and has no client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from spear_core import hookimpl
from spear_core.api import FrontDoorContext, FrontDoorSpec, NodeApi
from spear_core.errors import InvalidRequestError

from ._config import PrometheusConfig

__all__ = ["open_metrics_port", "spear_front_doors"]


@asynccontextmanager
async def open_metrics_port(
    context: FrontDoorContext, config: PrometheusConfig
) -> AsyncIterator[str]:
    """Serve the metrics while the block lasts; yields their URL, or nothing where it is off."""
    if not config.listen:
        yield ""
        return
    from ._server import open_server

    async with open_server(context.node, config, log=context.plugin.log) as url:
        yield url


def connect(url: str) -> AbstractAsyncContextManager[NodeApi]:
    """Nobody reaches a node this way. :raises InvalidRequestError: always."""
    raise InvalidRequestError(f"{url} tells metrics and takes no requests")


@hookimpl
def spear_front_doors() -> Iterable[FrontDoorSpec[Any]]:
    """Declare the metrics port."""
    yield FrontDoorSpec(
        name="prometheus",
        schemes=(),
        open=open_metrics_port,
        connect=connect,
        config_cls=PrometheusConfig,
    )
