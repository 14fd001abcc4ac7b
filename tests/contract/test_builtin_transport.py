"""The built-in memory transport keeps the promises of its interface."""

from __future__ import annotations

from spear_core.builtins import plugin
from spear_core.testing import TransportContract


class TestMemoryTransport(TransportContract):
    (spec,) = plugin.spear_transports()
