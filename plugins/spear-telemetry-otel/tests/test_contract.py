"""The tracer keeps what every tracer promises, also while its collector is not there."""

from __future__ import annotations

from spear_core.testing import TracerContract
from spear_telemetry_otel import OtelConfig
from spear_telemetry_otel.plugin import spear_tracers

(SPEC,) = spear_tracers()


class TestOtel(TracerContract):
    spec = SPEC
    config = OtelConfig(endpoint="http://127.0.0.1:9/v1/traces", export_timeout_ms=100)
