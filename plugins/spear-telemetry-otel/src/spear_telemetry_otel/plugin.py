"""The hook of the OpenTelemetry tracer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from spear_core import hookimpl
from spear_core.api import PluginContext, Tracer, TracerSpec

from ._config import OtelConfig

__all__ = ["open_otel_tracer", "spear_tracers"]


@asynccontextmanager
async def open_otel_tracer(
    context: PluginContext, config: OtelConfig
) -> AsyncIterator[Tracer | None]:
    """Send traces to the collector of the settings, if they name one."""
    if not config.endpoint:
        yield None
        return
    from ._tracer import open_tracer

    async with open_tracer(context, config) as tracer:
        yield tracer


@hookimpl
def spear_tracers() -> Iterable[TracerSpec[Any]]:
    """Declare the tracer ``otel``."""
    yield TracerSpec(name="otel", open=open_otel_tracer, config_cls=OtelConfig)
