"""A gRPC server whose handlers are trio tasks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from spear_transport_grpc._bridge._call import Gate, ServerCall
from spear_transport_grpc._bridge._core import cygrpc
from spear_transport_grpc._bridge._poller import Event, Poller
from spear_transport_grpc._bridge._status import RpcError, StatusCode
from spear_transport_grpc._bridge._workers import Workers

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
_FEW = 16
"""Calls that end together, at most. C-core writes what it is given in one go with one system call,
and the client wakes once for all of it."""
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


@attrs.frozen
class _Job:
    """A call and what handles it."""

    call: ServerCall
    method: Method | None
    request: bytes = b""
    """The only message of a unary call."""


class Server:
    """A running server; see :func:`open_server`."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        nursery: trio.Nursery,
        options: Mapping[str, int | str],
    ) -> None:
        self._methods = {name.encode(): method for name, method in methods.items()}
        self._workers = Workers[_Job](nursery, self._serve)
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
        self._ending: list[tuple[ServerCall, RpcError | None, bytes | None]] = []
        self._token = trio.lowlevel.current_trio_token()
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
        self._workers.dismiss()
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
        call = ServerCall(event, self._gate)
        method = self._methods.get(event.call_details.method)
        if isinstance(method, Unary):
            call.take_only(partial(self._on_request, call, method))
        else:
            self._workers.start(_Job(call, method))

    def _on_request(self, call: ServerCall, method: Unary, request: bytes | None) -> None:
        if call.given_up:
            return
        if request is None:
            call.end(RpcError(StatusCode.INTERNAL, "the call came without a message"))
        else:
            self._workers.start(_Job(call, method, request))

    async def _serve(self, job: _Job, scope: trio.CancelScope) -> None:
        call = job.call
        error: RpcError | None = _STOPPED
        answer: bytes | None = None
        self._live += 1
        try:
            call.attach(scope)
            answer = await self._handle(job)
            error = None
        except RpcError as raised:
            error = raised
        except Exception as raised:  # barrier: one call
            _log.exception("a handler of gRPC failed")
            error = RpcError(StatusCode.UNKNOWN, f"{type(raised).__name__}: {raised}")
        except BaseException:
            if scope.cancel_called:
                error = RpcError(StatusCode.DEADLINE_EXCEEDED, "the call's deadline has passed")
            raise
        finally:
            self._live -= 1
            call.detach()
            if call.has_begun:
                await call.wait_taken()
            self._end(call, error, answer)
            error = None  # its traceback refers to this frame

    async def _handle(self, job: _Job) -> bytes | None:
        if self._stopping:
            raise RpcError(StatusCode.UNAVAILABLE, "the server is stopping")
        if job.method is None:
            raise RpcError(StatusCode.UNIMPLEMENTED, "the server has no such method")
        if isinstance(job.method, Streaming):
            await job.method.handler(job.call)
            return None
        return await job.method.handler(job.request, job.call)

    def _end(self, call: ServerCall, error: RpcError | None, answer: bytes | None) -> None:
        """End a call; a little later, together with others, while there are others."""
        if not self._live:
            call.end(error, answer)
            return
        if not self._ending:
            self._token.run_sync_soon(self._end_all)
        self._ending.append((call, error, answer))
        if len(self._ending) >= _FEW:
            self._end_all()

    def _end_all(self) -> None:
        ending, self._ending = self._ending, []
        for call, error, answer in ending:
            call.end(error, answer)


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
