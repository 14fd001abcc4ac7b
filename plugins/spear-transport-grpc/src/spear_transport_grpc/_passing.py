"""Clients who came before gRPC was loaded: passed on to its server, until they come again by
themselves.

Their bytes go on as they are. With the end of its first call a client is asked to go (HTTP/2's
GOAWAY, as any server sends it before it stops): calls under way go on, and the next one finds a
connection of its own, on which nobody is between it and the server.
"""

from __future__ import annotations

import trio

__all__ = ["FirstAnswer", "pass_on"]

_HEADERS, _CONTINUATION = 1, 9
_END_STREAM, _END_HEADERS = 1, 4
_HEAD = 9
"""Bytes before the payload of a frame (RFC 9113, 4.1)."""
_GOAWAY = bytes.fromhex("000008 07 00 000000007fffffff 00000000")
"""Open no more calls here; there is no error, and every call so far is served (6.8)."""


class FirstAnswer:
    """Finds the end of the first call in what a server says."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self._ended = False
        self._block_open = False

    def end_in(self, data: bytes) -> int | None:
        """Where in the next piece a frame may be put in behind the first answer, if it ends
        there."""
        position = 0
        while position < len(data):
            if not self._left:
                wanted = data[position : position + _HEAD - len(self._head)]
                self._head += wanted
                position += len(wanted)
                if len(self._head) < _HEAD:
                    return None
                self._begin_frame()
            step = min(self._left, len(data) - position)
            self._left -= step
            position += step
            if not self._left and self._ended and not self._block_open:
                return position
        return None

    def _begin_frame(self) -> None:
        kind, flags = self._head[3], self._head[4]
        self._left = int.from_bytes(self._head[:3], "big")
        self._head.clear()
        if kind == _HEADERS:
            self._ended = self._ended or bool(flags & _END_STREAM)
        if kind in (_HEADERS, _CONTINUATION):
            self._block_open = not flags & _END_HEADERS


async def pass_on(client: trio.SocketStream, server: trio.SocketStream) -> None:
    """Pass bytes both ways until the server, or the client, is done."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, client, server)
            await _pump_answers(server, client)
            nursery.cancel_scope.cancel()  # a server that is done with it needs no more
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # one side is gone: the other hears it as we close


async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    """Pass bytes on until the source ends, then the end."""
    async for data in source:
        await sink.send_all(data)
    await sink.send_eof()


async def _pump_answers(server: trio.SocketStream, client: trio.SocketStream) -> None:
    first = FirstAnswer()
    async for piece in server:
        data = bytes(piece)
        end = first.end_in(data)
        if end is None:
            await client.send_all(data)
            continue
        await client.send_all(data[:end] + _GOAWAY + data[end:])
        break
    await _pump(server, client)
