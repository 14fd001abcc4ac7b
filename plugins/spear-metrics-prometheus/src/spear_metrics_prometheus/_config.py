"""Settings of the metrics port, section ``[plugins.metrics-prometheus]``."""

from __future__ import annotations

import ipaddress
import re

import attrs

__all__ = ["PrometheusConfig", "split_address"]


def split_address(listen: str) -> tuple[str, int]:
    """``127.0.0.1:9464`` or ``[::1]:9464`` → host and port. :raises ValueError: it is neither."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})", listen)
    if match is None or int(match[3]) > 65535:
        raise ValueError("expected an IP address and a port, such as 127.0.0.1:9464 or [::1]:9464")
    host = match[1] or match[2]
    ipaddress.ip_address(host)
    return host, int(match[3])


def _check_listen(_: object, __: object, value: str) -> None:
    if value:
        split_address(value)


@attrs.frozen(kw_only=True)
class PrometheusConfig:
    """Where the metrics are served."""

    listen: str = attrs.field(default="", validator=_check_listen)
    """IP address and port; empty: nowhere. Port 0 takes any free one."""
