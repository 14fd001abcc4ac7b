"""A small HTTP/1.1 server that gives one page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from logging import Logger

import h11
import trio

from spear_core.api import NodeApi
from spear_core.errors import ConfigError

from ._config import PrometheusConfig, split_address
from ._exposition import CONTENT_TYPE, render

__all__ = ["PATH", "open_server"]

PATH = "/metrics"

_REQUEST_S = 10.0
"""How long a request may take to arrive, and its answer to be taken."""
_IDLE_S = 150.0
"""How long a connection is kept for the next scrape; they come each minute or more often."""
_MOST_CONNECTIONS = 32
_MOST_HEAD_BYTES = 16 << 10
_LAST_ANSWERS_S = 2.0
_LINGER_S = 1.0
_LINGER_READS = 16

_Headers = list[tuple[bytes, bytes]]


class _Server:
    """Answers on every connection; made by :func:`open_server`."""

    def __init__(self, node: NodeApi, log: Logger) -> None:
        self._node = node
        self._log = log
        self._rendering = trio.CapacityLimiter(1)
        self._open = 0
        self._idle: dict[trio.CancelScope, None] = {}
        """Connections that wait for a request, longest first."""
        self._closing = False

    def close_idle(self) -> None:
        """Serve what has been asked for, and nothing more."""
        self._closing = True
        for scope in self._idle:
            scope.cancel()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection."""
        async with stream:
            if self._open >= _MOST_CONNECTIONS and self._idle:
                oldest = next(iter(self._idle))
                del self._idle[oldest]
                oldest.cancel()
            elif self._open >= _MOST_CONNECTIONS:
                return
            self._open += 1
            try:
                await self._converse(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                pass
            except Exception:  # barrier: one connection
                self._log.exception("a connection to the metrics port broke")
            finally:
                self._open -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEAD_BYTES)
        while not self._closing and await self._has_bytes(stream, connection):
            with trio.fail_after(_REQUEST_S):
                try:
                    request = await _receive_request(stream, connection)
                except h11.RemoteProtocolError as error:
                    await self._refuse(stream, connection, error)
                    return
                if request is None:
                    return
                status, headers, body = await self._answer(request)
                await _send(stream, connection, status, headers, body, head=request.method)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                await _linger(stream)
                return
            connection.start_next_cycle()

    async def _has_bytes(self, stream: trio.SocketStream, connection: h11.Connection) -> bool:
        """Wait for the first bytes of a request; false if none come."""
        if connection.trailing_data[0]:
            return True
        with trio.move_on_after(_IDLE_S) as scope:
            self._idle[scope] = None
            try:
                data = await stream.receive_some(_MOST_HEAD_BYTES)
            finally:
                self._idle.pop(scope, None)
            connection.receive_data(data)
            return bool(data)
        return False

    async def _refuse(
        self, stream: trio.SocketStream, connection: h11.Connection, error: h11.RemoteProtocolError
    ) -> None:
        if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status = error.error_status_hint
            close = [(b"connection", b"close")]
            await _send(stream, connection, status, close, b"malformed request\n")
            await _linger(stream)

    async def _answer(self, request: h11.Request) -> tuple[int, _Headers, bytes]:
        if request.target.partition(b"?")[0] != PATH.encode():
            return 404, [], f"the metrics are at {PATH}\n".encode()
        if request.method not in (b"GET", b"HEAD"):
            return 405, [(b"allow", b"GET, HEAD")], b"only GET and HEAD\n"
        try:
            metrics = await self._node.metrics()
            page = await trio.to_thread.run_sync(render, metrics, limiter=self._rendering)
        except Exception:  # barrier: one request
            self._log.exception("the metrics could not be told")
            return 500, [], b"the metrics could not be told; see the node's log\n"
        return 200, [(b"content-type", CONTENT_TYPE.encode())], page.encode()


async def _receive_request(
    stream: trio.SocketStream, connection: h11.Connection
) -> h11.Request | None:
    """The next request without its body; ``None``: the client has gone."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_MOST_HEAD_BYTES))
        elif isinstance(event, h11.Request):
            if connection.their_state is not h11.DONE:
                _skip_end(connection)
            return event
        else:
            return None


def _skip_end(connection: h11.Connection) -> None:
    """Take the end of a request that has no body; a body is left, and the connection closed."""
    if connection.their_state is h11.SEND_BODY:
        connection.next_event()


async def _send(
    stream: trio.SocketStream,
    connection: h11.Connection,
    status: int,
    headers: _Headers,
    body: bytes,
    *,
    head: bytes = b"GET",
) -> None:
    known = {name for name, _ in headers}
    more = [(b"content-length", str(len(body)).encode())]
    if b"content-type" not in known:
        more.append((b"content-type", b"text/plain; charset=utf-8"))
    if connection.their_state is not h11.DONE and b"connection" not in known:
        more.append((b"connection", b"close"))
    parts = [connection.send(h11.Response(status_code=status, headers=[*headers, *more]))]
    if head != b"HEAD":
        parts.append(connection.send(h11.Data(data=body)))
    parts.append(connection.send(h11.EndOfMessage()))
    await stream.send_all(b"".join(part for part in parts if part))


async def _linger(stream: trio.SocketStream) -> None:
    """Take some of what we do not want: a socket closed with bytes unread is reset, and the client
    may never see the answer."""
    await stream.send_eof()
    with trio.move_on_after(_LINGER_S):
        for _ in range(_LINGER_READS):
            if not await stream.receive_some(_MOST_HEAD_BYTES):
                return


@asynccontextmanager
async def open_server(
    node: NodeApi, config: PrometheusConfig, *, log: Logger
) -> AsyncIterator[str]:
    """Serve while the block lasts; yields the URL of the metrics.

    **Raises** :exc:`~spear_core.errors.ConfigError` when the address cannot be listened on.
    """
    host, port = split_address(config.listen)
    try:
        (listener,) = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise ConfigError(
            f"plugins.metrics-prometheus.listen: {config.listen}: {error.strerror or error}"
        ) from error
    host, port = listener.socket.getsockname()[:2]
    server = _Server(node, log)
    failure: Exception | None = None

    async def accept() -> None:
        await trio.serve_listeners(server.serve, [listener], handler_nursery=connections)

    async with trio.open_nursery() as connections, listener:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(accept)
            try:
                yield f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"
            except Exception as exc:  # barrier: carried past the nurseries, as it is
                failure = exc
            accepting.cancel_scope.cancel()
        server.close_idle()
        connections.cancel_scope.deadline = trio.current_time() + _LAST_ANSWERS_S
    if failure is not None:
        raise failure
