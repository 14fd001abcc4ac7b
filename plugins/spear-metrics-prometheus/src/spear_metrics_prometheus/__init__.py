"""SPEAR's metrics for Prometheus; see :mod:`spear_metrics_prometheus.plugin`."""

from spear_metrics_prometheus._config import PrometheusConfig

__all__ = ["PrometheusConfig"]
