"""Whether this grpcio can be driven, before anything relies on it."""

from __future__ import annotations

import os
from functools import cache

import trio

from spear_transport_grpc._bridge._call import ServerCall
from spear_transport_grpc._bridge._client import open_channel
from spear_transport_grpc._bridge._core import unsupported
from spear_transport_grpc._bridge._server import Method, Port, Streaming, Unary, open_server

__all__ = ["check_bridge"]

_PATIENCE_S = 5.0


async def _round_trip() -> None:
    async def echo(data: bytes, call: ServerCall) -> bytes:
        return data

    async def echo_stream(call: ServerCall) -> None:
        while (data := await call.receive()) is not None:
            await call.send(data)

    methods: dict[str, Method] = {
        "/check/Echo": Unary(echo),
        "/check/Stream": Streaming(echo_stream),
    }
    port = Port(address=f"unix-abstract:spear-check-{os.getpid()}-{id(methods)}")
    with trio.fail_after(_PATIENCE_S):
        async with (
            open_server((port,), methods, grace_s=0) as _,
            open_channel(port.address) as channel,
        ):
            if await channel.call("/check/Echo", b"1") != b"1":
                raise unsupported("a call to ourselves came back changed")
            async with channel.open_call("/check/Stream") as call:
                await call.send(b"2")
                if await call.receive() != b"2":
                    raise unsupported("a stream to ourselves came back changed")


@cache
def check_bridge() -> None:
    """Make one call of each kind to ourselves, in a trio run of its own: call it in a thread.

    **Raises** :exc:`~spear_core.errors.RuntimeUnavailableError` with which grpcio to install.
    """
    try:
        trio.run(_round_trip)
    except Exception as error:  # barrier: whatever an unknown grpcio does
        raise unsupported(f"a call to ourselves failed ({error!r})") from error
