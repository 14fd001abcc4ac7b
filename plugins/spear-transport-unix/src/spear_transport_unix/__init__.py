"""SPEAR transports over Unix and TCP sockets; see :mod:`spear_transport_unix.plugin`."""

from spear_transport_unix._config import TcpConfig, UnixConfig

__all__ = ["TcpConfig", "UnixConfig"]
