"""The settings of both transports; one section, ``[plugins.transport-unix]``."""

from __future__ import annotations

import attrs
from attrs import validators

__all__ = ["TcpConfig", "UnixConfig"]

_MAX_FRAME = (64 << 20) + (64 << 10)


@attrs.frozen(kw_only=True)
class UnixConfig:
    """Settings of ``unix``."""

    max_frame_bytes: int = attrs.field(
        default=_MAX_FRAME, validator=[validators.ge(1 << 20), validators.lt(1 << 32)]
    )
    """The longest frame that is sent or accepted."""


@attrs.frozen(kw_only=True)
class TcpConfig:
    """Settings of ``tcp``."""

    max_frame_bytes: int = attrs.field(
        default=_MAX_FRAME, validator=[validators.ge(1 << 20), validators.lt(1 << 32)]
    )
    """The longest frame that is sent or accepted."""
    tcp_host: str = attrs.field(default="127.0.0.1", validator=validators.min_len(1))
    """The IP address that instances connect to. Frames are not encrypted: leave it on loopback
    unless the network is yours alone."""
