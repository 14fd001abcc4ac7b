"""The transport keeps the promises of its interface."""

from __future__ import annotations

from spear_core.testing import TransportContract
from spear_transport_grpc import plugin
from spear_transport_grpc._config import ChannelConfig

(GRPC,) = plugin.spear_transports()


class TestGrpc(TransportContract):
    spec = GRPC
    too_big = ChannelConfig().max_message_bytes
