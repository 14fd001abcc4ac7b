"""The client side of the front door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import trio

from spear_core.api import NodeApi
from spear_core.errors import InvalidRequestError, NodeUnreachableError
from spear_transport_grpc._address import UnixAddress, parse, short_target
from spear_transport_grpc._bridge import RpcError, StatusCode, open_channel
from spear_transport_grpc._client import GrpcNode
from spear_transport_grpc._errors import status_to_error
from spear_transport_grpc._protos.grpc.health.v1 import health_pb2
from spear_transport_grpc._tls import client_credentials

__all__ = ["connect"]

_GREETING_S = 10.0
_MAX_MESSAGE = (1 << 31) - 1
"""The node's limits count; a client takes what it asked for."""
_WINDOW = 1 << 20
_OPTIONS = {
    "grpc.max_receive_message_length": _MAX_MESSAGE,
    "grpc.max_send_message_length": _MAX_MESSAGE,
    "grpc.http2.bdp_probe": 0,
    "grpc.http2.lookahead_bytes": _WINDOW,
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.http2.ping_timeout_ms": 20_000,  # the newer name, else a minute
}


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[NodeApi]:
    """The node behind ``grpc://``, ``grpcs://`` or ``grpc+unix://``.

    **Raises** :exc:`~spear_core.errors.NodeUnreachableError` when no node answers there,
    :exc:`~spear_core.errors.InvalidRequestError` for a malformed URL.
    """
    try:
        place = parse(url)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error
    where = url.partition("?")[0]
    options: dict[str, int | str] = dict(_OPTIONS)
    credentials = None
    with ExitStack() as stack:
        if isinstance(place, UnixAddress):
            try:
                target = stack.enter_context(short_target(place.path))
            except OSError as error:
                raise NodeUnreachableError(
                    f"no node serves gRPC at {where}: {error.strerror}"
                ) from error
            options["grpc.default_authority"] = "localhost"
        else:
            target = place.target
            if place.tls:
                credentials = client_credentials(dict(place.options))
        async with open_channel(target, options=options, credentials=credentials) as channel:
            try:
                with trio.fail_after(_GREETING_S):
                    question = health_pb2.HealthCheckRequest(service="spear.v1.NodeService")
                    await channel.call("/grpc.health.v1.Health/Check", question.SerializeToString())
            except RpcError as error:
                if error.code in (StatusCode.NOT_FOUND, StatusCode.UNIMPLEMENTED):
                    raise NodeUnreachableError(f"what answers at {where} is no node") from error
                if error.code is StatusCode.UNAVAILABLE:
                    raise NodeUnreachableError(
                        f"no node answers at {where}: {error.details}"
                    ) from error
                raise status_to_error(error, where) from error
            except trio.TooSlowError:
                raise NodeUnreachableError(
                    f"the node at {where} said nothing for {_GREETING_S:g} s"
                ) from None
            yield GrpcNode(channel, where)
