"""gRPC for trio: C-core's completion queue driven without asyncio.

The rest of the package sees this interface only: :func:`open_server` with handlers that are trio
tasks, :func:`open_channel` for callers, statuses and errors of our own. Importing it loads grpcio
and checks that it is one we can drive.
"""

from spear_transport_grpc._bridge._call import ServerCall
from spear_transport_grpc._bridge._client import ClientCall, ClientChannel, open_channel
from spear_transport_grpc._bridge._server import (
    Method,
    Port,
    Server,
    Streaming,
    Unary,
    open_server,
)
from spear_transport_grpc._bridge._status import Metadata, RpcError, StatusCode

__all__ = [
    "ClientCall",
    "ClientChannel",
    "Metadata",
    "Method",
    "Port",
    "RpcError",
    "Server",
    "ServerCall",
    "StatusCode",
    "Streaming",
    "Unary",
    "open_channel",
    "open_server",
]
