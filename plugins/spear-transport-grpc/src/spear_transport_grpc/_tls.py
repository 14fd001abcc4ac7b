"""Certificates for both sides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import grpc  # type: ignore[import-untyped]  # it has no types

from spear_core.errors import ConfigError

__all__ = ["client_credentials", "server_credentials"]


def _read(what: str, path: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read: {error.strerror}") from error
    if b"-----BEGIN " not in data:
        raise ConfigError(f"{what}: {path} is no PEM file")
    return data


def server_credentials(cert: str, key: str, client_ca: str) -> object:
    """For a listener; with ``client_ca``, clients without a certificate of it are turned away.

    **Raises** :exc:`~spear_core.errors.ConfigError`.
    """
    pair = (_read("tls_key", key), _read("tls_cert", cert))
    authority = _read("client_ca", client_ca) if client_ca else None
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authority, require_client_auth=authority is not None
    )


def client_credentials(options: Mapping[str, str]) -> object:
    """For a channel; ``ca``, ``cert`` and ``key`` are paths of PEM files.

    **Raises** :exc:`~spear_core.errors.ConfigError`.
    """
    read = {name: _read(name, path) for name, path in options.items()}
    if ("cert" in read) != ("key" in read):
        raise ConfigError("a client's certificate needs both: cert and key")
    return grpc.ssl_channel_credentials(
        root_certificates=read.get("ca"),
        private_key=read.get("key"),
        certificate_chain=read.get("cert"),
    )
