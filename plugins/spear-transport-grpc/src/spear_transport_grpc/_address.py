"""Addresses: the URLs of people, and what C-core calls the same places."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import attrs

__all__ = ["SCHEMES", "TcpAddress", "UnixAddress", "parse", "short_target"]

SCHEMES = ("grpc", "grpcs", "grpc+unix")


@attrs.frozen(kw_only=True)
class TcpAddress:
    """``grpc://host:port`` or, with TLS, ``grpcs://host:port``."""

    host: str
    port: int
    tls: bool
    options: tuple[tuple[str, str], ...] = ()
    """``?ca=…&cert=…&key=…``"""

    @property
    def target(self) -> str:
        """As C-core has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def url(self, port: int) -> str:
        """The address, with the port that a listener got."""
        return f"grpc{'s' if self.tls else ''}://{attrs.evolve(self, port=port).target}"


@attrs.frozen
class UnixAddress:
    """``grpc+unix:///path``."""

    path: Path

    @property
    def url(self) -> str:
        """The address."""
        return f"grpc+unix://{self.path}"


def parse(url: str) -> TcpAddress | UnixAddress:
    """The parts of an address. **Raises** :exc:`ValueError` with what is wrong."""
    if "\0" in url or not url.isprintable():
        raise ValueError(f"{url!r} is no address")
    parts = urlsplit(url)
    if parts.scheme == "grpc+unix":
        path = Path(url.removeprefix("grpc+unix://"))
        if not path.is_absolute() or not path.name:
            raise ValueError(f"{url!r} should be grpc+unix:///path/to/grpc.sock")
        return UnixAddress(path)
    if parts.scheme not in ("grpc", "grpcs"):
        raise ValueError(f"{url!r} should begin with grpc://, grpcs:// or grpc+unix://")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r}: {error}") from error
    if not host or port is None or parts.path not in ("", "/") or parts.username is not None:
        raise ValueError(f"{url!r} should be {parts.scheme}://HOST:PORT")
    options = tuple(parse_qsl(parts.query, keep_blank_values=True))
    unknown = [name for name, _ in options if name not in ("ca", "cert", "key")]
    if unknown or (options and parts.scheme == "grpc"):
        raise ValueError(f"{url!r}: only grpcs:// has options, and those are ca, cert and key")
    return TcpAddress(host=host, port=port, tls=parts.scheme == "grpcs", options=options)


@contextmanager
def short_target(path: Path) -> Iterator[str]:
    """C-core's name of a Unix socket, however long its path is.

    Valid while the block lasts. **Raises** :exc:`OSError` when the directory does not exist.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"unix:/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
