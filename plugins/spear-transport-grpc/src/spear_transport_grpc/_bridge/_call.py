"""One call as the server sees it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import trio

from spear_transport_grpc._bridge._core import NO_FLAGS, cygrpc
from spear_transport_grpc._bridge._messages import Messages
from spear_transport_grpc._bridge._poller import Event
from spear_transport_grpc._bridge._status import ACCEPTED, Metadata, RpcError, StatusCode

__all__ = ["Gate", "ServerCall"]

_FOR_EVER = 1e12
"""Seconds since the epoch beyond which C-core means that there is no deadline."""
_SAME_MOMENT_S = 0.002
"""How far apart two events of one cause may reach us."""
_LAST_MESSAGE_S = 1.0
"""How long the status waits for a message that a client does not take."""
_OK = int(StatusCode.OK)
_LONGEST_DETAILS = 1024
"""Bytes of a status's text: clients refuse headers of over 8 KiB, and it may grow threefold."""


class Gate:
    """Whether operations may still be started on a server's calls.

    C-core aborts the process when one is started after the shutdown of the queue that would tell
    of its end, and a handler that cannot be cancelled at once, for it waits for a thread, outlives
    that.
    """

    def __init__(self) -> None:
        self.open = True


class ServerCall:
    """What a handler sees of its call. Its cancel scope ends with the call's deadline, and when the
    client cancels or vanishes."""

    deadline: float
    """On trio's clock; infinite when the client set none."""
    given_up: bool
    """The client has cancelled the call, or is gone."""

    def __init__(self, event: Event, gate: Gate) -> None:
        self._call = event.call
        self._metadata = event.invocation_metadata
        # not a method of ours: a call in a cycle of references stays in C-core until Python looks
        # for those, and C-core refuses new calls on a connection that has too many
        self._start = functools.partial(_start, gate, self._call)
        self._messages: Messages | None = None
        self._began = False
        self._end_seen = False
        self._scope: trio.CancelScope | None = None
        self.given_up = False
        self.deadline = math.inf
        deadline = event.call_details.deadline
        if deadline is not None and deadline < _FOR_EVER:
            self.deadline = trio.current_time() + max(0.0, deadline - time.time())
        self._start((cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),), self._on_close)

    def attach(self, scope: trio.CancelScope) -> None:
        """From now on the scope ends with the call, until :meth:`detach`."""
        self._scope = scope
        if self.deadline < math.inf:
            scope.deadline = self.deadline
        if self.given_up:
            scope.cancel()

    def detach(self) -> None:
        """The handler has ended: leave the scope to others."""
        scope, self._scope = self._scope, None
        if scope is not None and self.deadline < math.inf:
            scope.deadline = math.inf

    @property
    def peer(self) -> str:
        """The client's address, as gRPC writes it: ``ipv4:127.0.0.1:40123``, ``unix:``."""
        return str(self._call.peer().decode())

    def header(self, name: str) -> str:
        """The text of this name that the client sent with the call; empty: it sent none."""
        for key, value in self._metadata:
            if key == name and isinstance(value, str):
                return value
        return ""

    def identity(self) -> dict[str, list[bytes]]:
        """What the client's certificate says about it; empty without one."""
        found = cygrpc.auth_context(self._call) or {}
        return {key.decode(): list(values) for key, values in found.items()}

    def take_only(self, done: Callable[[bytes | None], None]) -> None:
        """Have ``done`` called with the only message of a unary call; ``None``: it came without.
        Instead of :meth:`receive`."""
        self._start(
            (cygrpc.ReceiveMessageOperation(NO_FLAGS),),
            lambda event: done(event.batch_operations[0].message()),
        )

    async def receive(self) -> bytes | None:
        """The client's next message; ``None`` when it sends no more.

        **Cancellation**: loses nothing.
        """
        message = await self._both_ways().receive()
        if message is None and not self._end_seen:
            self._end_seen = True
            # a call that is cancelled ends its messages too, and says so in the same moment
            await trio.sleep(_SAME_MOMENT_S)
        return message

    async def send(self, data: bytes) -> None:
        """Send one message; waits while the client does not read.

        **Cancellation**: it was sent or not, never in part.
        """
        if not await self.offer(data):
            await trio.sleep_forever()  # the call is over, and our scope is about to be cancelled

    async def offer(self, data: bytes) -> bool:
        """:meth:`send` for a task that is not the handler's; false when the call is over."""
        first = () if self._began else (_accept(),)
        sent = await self._both_ways().send(data, first)
        self._began = self._began or sent
        return sent

    def accept(self) -> None:
        """Tell the client that the call is taken, before there is a message for it."""
        if not self._began:
            self._began = True
            self._start((_accept(),), _nothing)

    @property
    def has_begun(self) -> bool:
        """Something was sent to the client; :meth:`wait_taken` comes before :meth:`end` then."""
        return self._began

    async def wait_taken(self) -> None:
        """Wait a little until the client has taken the last message, or is gone. Other tasks that
        still send are told that the call is over."""
        if self._messages is not None:
            with trio.move_on_after(_LAST_MESSAGE_S, shield=True):
                await self._messages.wait_last_sent()

    def end(self, error: RpcError | None, answer: bytes | None = None) -> None:
        """End the call, with the only answer of a unary one."""
        if self.given_up:
            return
        code, details, trailing = _OK, b"", Metadata()
        if error is not None:
            code, trailing, answer = int(error.code), error.trailing, None
            text = error.details.encode("utf-8", "replace")[:_LONGEST_DETAILS]
            details = text.decode("utf-8", "ignore").encode()
        operations: list[Any] = []
        if not self._began:
            operations.append(cygrpc.SendInitialMetadataOperation((), NO_FLAGS))
        if answer is not None:
            operations.append(cygrpc.SendMessageOperation(answer, NO_FLAGS))
        operations.append(cygrpc.SendStatusFromServerOperation(trailing, code, details, NO_FLAGS))
        self._start(tuple(operations), _nothing)

    def _both_ways(self) -> Messages:
        if self._messages is None:
            self._messages = Messages(self._start)
        return self._messages

    def _on_close(self, event: Event) -> None:
        if event.batch_operations[0].cancelled():
            self.given_up = True
            if self._scope is not None:
                self._scope.cancel()


def _accept() -> Any:
    return cygrpc.SendInitialMetadataOperation(ACCEPTED, NO_FLAGS)


def _start(
    gate: Gate, call: Any, operations: tuple[Any, ...], done: Callable[[Event], None]
) -> bool:
    # an error code means that `done` is never called; C-core has none that could be helped
    return gate.open and not call.start_server_batch(operations, done)


def _nothing(event: Event) -> None:
    """The call is over; there is nobody left to tell."""
