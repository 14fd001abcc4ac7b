"""Settings of the tracer, section ``[plugins.telemetry-otel]``."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import attrs
from attrs import validators

__all__ = ["OtelConfig"]


def _check_endpoint(_: object, __: object, value: str) -> None:
    if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
        raise ValueError("expected a URL such as http://127.0.0.1:4318/v1/traces")


@attrs.frozen(kw_only=True)
class OtelConfig:
    """Which traces are made, and where they go."""

    endpoint: str = attrs.field(default="", validator=_check_endpoint)
    """Where a collector takes OTLP over HTTP; empty: nothing is traced."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """Sent with every request."""
    service_name: str = attrs.field(default="spear", validator=validators.min_len(1))
    sample_ratio: float = attrs.field(
        default=1.0, validator=[validators.ge(0.0), validators.le(1.0)]
    )
    """Share of the traces that begin here to keep; of others, their beginner has decided."""
    max_queued_spans: int = attrs.field(default=8192, validator=validators.gt(0))
    """Spans that may wait to be sent; more are dropped and counted."""
    export_interval_ms: int = attrs.field(default=1000, validator=validators.gt(0))
    """How long a span may wait for others to go with it."""
    export_timeout_ms: int = attrs.field(default=5000, validator=validators.gt(0))
    """How long the collector may take, repeated attempts included."""
