"""OpenTelemetry traces of a SPEAR node; see :mod:`spear_telemetry_otel.plugin`."""

from spear_telemetry_otel._config import OtelConfig

__all__ = ["OtelConfig"]
