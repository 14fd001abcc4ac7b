"""The settings of front door and transport; one section, ``[plugins.transport-grpc]``."""

from __future__ import annotations

import attrs
from attrs import validators

__all__ = ["ChannelConfig", "DoorConfig"]

_MAX_MESSAGE = (64 << 20) + (1 << 20)


def _listen_entry(instance: object, attribute: object, value: str) -> None:
    """A URL or the plain name of a file; ``127.0.0.1:50052`` is neither."""
    plain = bool(value) and value.isprintable() and not set("/:") & set(value)
    if not plain and "://" not in value:
        raise ValueError(
            f"{value!r} is no address; write grpc://127.0.0.1:50052, or a file's name for a Unix "
            "socket in the node's state directory"
        )


@attrs.frozen(kw_only=True)
class DoorConfig:
    """Settings of the front door."""

    listen: tuple[str, ...] = attrs.field(
        default=("grpc.sock",), validator=validators.deep_iterable(_listen_entry)
    )
    """Where to listen: the name of a Unix socket in the node's state directory, or
    ``grpc+unix:///path``, ``grpc://127.0.0.1:50052``, ``grpcs://0.0.0.0:50052``. Empty: nowhere."""
    tls_cert: str = ""
    """For ``grpcs``: a PEM file with the node's certificate and those that vouch for it."""
    tls_key: str = ""
    """A PEM file with its private key."""
    client_ca: str = ""
    """A PEM file with who vouches for clients; without it no client needs a certificate."""
    insecure: bool = False
    """Listen for others than this machine even where anybody could then run code here: without TLS,
    or without asking clients for a certificate."""
    max_message_bytes: int = attrs.field(
        default=_MAX_MESSAGE, validator=[validators.ge(1 << 20), validators.lt(1 << 31)]
    )
    """The longest message that is taken or sent."""
    max_concurrent_streams: int = attrs.field(default=1000, validator=validators.gt(0))
    """Calls at the same time on one connection; more wait on the client's side."""
    keepalive_s: float = attrs.field(default=60.0, validator=validators.ge(1))
    """How often a silent client is asked whether it is still there; one that has not answered for
    20 s is taken for gone, and its calls are cancelled."""


@attrs.frozen(kw_only=True)
class ChannelConfig:
    """Settings of the transport ``grpc``."""

    max_message_bytes: int = attrs.field(
        default=_MAX_MESSAGE, validator=[validators.ge(1 << 20), validators.lt(1 << 31)]
    )
    """The longest message that is taken or sent."""
    channel_host: str = attrs.field(default="127.0.0.1", validator=validators.min_len(1))
    """The IP address that instances connect to."""
    channel_tls: bool = False
    """Instances connect with TLS; ``tls_cert`` and ``tls_key`` are the node's."""
    tls_cert: str = ""
    tls_key: str = ""
    channel_ca: str = ""
    """A PEM file with who vouches for the node, for the connecting side; empty: the certificate
    itself, ``tls_cert``."""
