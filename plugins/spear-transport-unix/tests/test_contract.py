"""Both transports keep the promises of their interface."""

from __future__ import annotations

from spear_core.rpc.framing import MAX_FRAME
from spear_core.testing import TransportContract
from spear_transport_unix import plugin

UNIX, TCP = plugin.spear_transports()


class TestUnix(TransportContract):
    spec = UNIX
    too_big = MAX_FRAME
    passes_fds = True


class TestTcp(TransportContract):
    spec = TCP
    too_big = MAX_FRAME
