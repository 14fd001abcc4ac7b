"""A gRPC server whose handlers are trio tasks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import attrs
import trio

from spear_transport_grpc._bridge._call import Gate, ServerCall
from spear_transport_grpc._bridge._core import cygrpc
from spear_transport_grpc._bridge._poller import Event, Poller
from spear_transport_grpc._bridge._status import RpcError, StatusCode

__all__ = ["Method", "Port", "Server", "Streaming", "Unary", "open_server"]

_REQUESTS_AHEAD = 16
"""Calls that C-core may hand over before trio has looked at the first."""
_UNWIND_S = 5.0
"""How long C-core may take to finish calls that are cancelled; it takes milliseconds."""
_OPTIONS: Mapping[str, int | str] = {
    "grpc.so_reuseport": 0,  # or a second server takes half the calls, silently
    "grpc.http2.max_ping_strikes": 0,  # a client's keepalive is its own business
}
_CROWD = 2
"""Calls under way from which on trio looks into the queue by itself."""
_STOPPED = RpcError(StatusCode.CANCELLED, "the server stopped the call")
_log = logging.getLogger("spear.transport-grpc")


@attrs.frozen
class Unary:
    """One message in, one out."""

    handler: Callable[[bytes, ServerCall], Awaitable[bytes]]


@attrs.frozen
class Streaming:
    """Any number of messages either way: the handler receives and sends, and returns at the end."""

    handler: Callable[[ServerCall], Awaitable[None]]


Method = Unary | Streaming


@attrs.frozen(kw_only=True)
class Port:
    """Where to listen: ``unix:/path``, ``127.0.0.1:0``, ``[::1]:50052``."""

    address: str
    credentials: object | None = None
    """What ``grpc.ssl_server_credentials`` gives; ``None``: no TLS."""


class Server:
    """A running server; see :func:`open_server`."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        nursery: trio.Nursery,
        options: Mapping[str, int | str],
    ) -> None:
        self._methods = {name.encode(): method for name, method in methods.items()}
        self._nursery = nursery
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options.items()), False)
        self._server.register_completion_queue(self._queue)
        self._poller = Poller(
            self._queue.poll,
            lambda event: event.completion_type == cygrpc.CompletionType.queue_shutdown,
            look=lambda: self._queue.poll(0.0),
            crowded=lambda: self._live >= _CROWD,
        )
        self._gate = Gate()
        self._live = 0
        self._stopping = False
        self._gone = trio.Event()
        self.ports: tuple[int, ...] = ()
        """The number of each port, in the order they were given (1 for a Unix socket)."""

    def listen(self, port: Port) -> None:
        """Open a port. **Raises** :exc:`OSError` when it cannot be used."""
        address = port.address.encode()
        credentials = getattr(port.credentials, "_credentials", None)
        number = 0
        with contextlib.suppress(RuntimeError):  # what newer versions raise
            if credentials is None:
                number = self._server.add_http2_port(address)
            else:
                number = self._server.add_http2_port(address, credentials)
        if not number:
            raise OSError(f"cannot listen on {port.address}; is something else there?")
        self.ports = (*self.ports, number)

    def start(self) -> None:
        """Take calls."""
        self._poller.start()
        self._server.start(backup_queue=False)
        for _ in range(_REQUESTS_AHEAD):
            self._ask_for_call()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, let those under way finish for that long, cancel the rest."""
        if self._stopping:
            return
        self._stopping = True
        self._server.shutdown(self._queue, lambda _: self._gone.set())
        try:
            with trio.move_on_after(grace_s):
                await self._gone.wait()
        finally:
            with trio.move_on_after(_UNWIND_S, shield=True):
                if not self._gone.is_set():
                    self._server.cancel_all_calls()
                    await self._gone.wait()
                self._gate.open = False
                self._server.destroy()
                self._queue.shutdown()
                await self._poller.wait_over()

    async def abandon(self) -> None:
        """Undo what was made without :meth:`start`."""
        self._poller.start()
        self._server.destroy()
        self._queue.shutdown()
        with trio.move_on_after(_UNWIND_S, shield=True):
            await self._poller.wait_over()

    def _ask_for_call(self) -> None:
        self._server.request_call(self._queue, self._queue, self._on_call)

    def _on_call(self, event: Event) -> None:
        if not event.success:
            return  # the server shuts down: no call came
        if not self._stopping:
            self._ask_for_call()
        method = self._methods.get(event.call_details.method)
        self._nursery.start_soon(self._serve, ServerCall(event, self._gate), method)

    async def _serve(self, call: ServerCall, method: Method | None) -> None:
        error: RpcError | None = _STOPPED
        answer: bytes | None = None
        self._live += 1
        try:
            with call.scope:
                try:
                    answer = await self._handle(call, method)
                    error = None
                except RpcError as raised:
                    error = raised
                except Exception as raised:  # barrier: one call
                    _log.exception("a handler of gRPC failed")
                    error = RpcError(StatusCode.UNKNOWN, f"{type(raised).__name__}: {raised}")
            if call.scope.cancelled_caught:
                error = RpcError(StatusCode.DEADLINE_EXCEEDED, "the call's deadline has passed")
        finally:
            self._live -= 1
            with trio.CancelScope(shield=True):
                await call.finish(error, answer)
            error = None  # its traceback refers to this frame

    async def _handle(self, call: ServerCall, method: Method | None) -> bytes | None:
        if self._stopping:
            raise RpcError(StatusCode.UNAVAILABLE, "the server is stopping")
        if method is None:
            raise RpcError(StatusCode.UNIMPLEMENTED, "the server has no such method")
        if isinstance(method, Streaming):
            await method.handler(call)
            return None
        request = await call.receive()
        if request is None:
            raise RpcError(StatusCode.INTERNAL, "the call came without a message")
        return await method.handler(request, call)


@asynccontextmanager
async def open_server(
    ports: tuple[Port, ...],
    methods: Mapping[str, Method],
    *,
    grace_s: float,
    options: Mapping[str, int | str] | None = None,
) -> AsyncIterator[Server]:
    """Serve ``methods`` (``/package.Service/Method`` → handler) while the block lasts.

    Leaving it takes no new calls and gives those under way ``grace_s`` seconds; leaving it by a
    cancellation stops at once. **Raises** :exc:`OSError` when a port cannot be used.

    :param options: C-core's channel arguments, beside those that always make sense.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as calls:
        server = Server(methods, calls, {**_OPTIONS, **(options or {})})
        try:
            for port in ports:
                server.listen(port)
        except OSError as error:
            failure = error
            await server.abandon()
        else:
            server.start()
            try:
                yield server
            except Exception as raised:  # barrier: carried past the nursery, as it is
                failure = raised
            finally:
                await server.stop(grace_s)
    if failure is not None:
        raise failure
