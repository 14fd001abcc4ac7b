"""Frames, heads and sessions: the protocol of ``docs/wire-format.md`` over any channel.

``framing`` and ``codec`` are pure; ``socket_channel`` moves frames over a socket; ``session``
correlates requests and answers; ``handshake`` is the first frame each way; ``local_stream`` has
streams within one process.
"""

from spear_core.rpc.handshake import hello, welcome
from spear_core.rpc.local_stream import FarEnd, open_local_stream
from spear_core.rpc.session import Call, Reply, Session, SessionLimits, Stream, open_session
from spear_core.rpc.socket_channel import SocketChannel

__all__ = [
    "Call",
    "FarEnd",
    "Reply",
    "Session",
    "SessionLimits",
    "SocketChannel",
    "Stream",
    "hello",
    "open_local_stream",
    "open_session",
    "welcome",
]
