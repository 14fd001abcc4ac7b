"""One call as the server sees it."""

from __future__ import annotations

import functools
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

    given_up: bool
    """The client has cancelled the call, or is gone."""

    def __init__(self, event: Event, gate: Gate) -> None:
        self._call = event.call
        self._metadata = event.invocation_metadata
        # not a method of ours: a call in a cycle of references stays in C-core until Python looks
        # for those, and C-core refuses new calls on a connection that has too many
        self._start = functools.partial(_start, gate, self._call)
        self._messages = Messages(self._start)
        self._began = False
        self._end_seen = False
        self._over = False
        self.scope = trio.CancelScope()
        self.given_up = False
        deadline = event.call_details.deadline
        if deadline is not None and deadline < _FOR_EVER:
            self.scope.deadline = trio.current_time() + max(0.0, deadline - time.time())
        self._start((cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),), self._on_close)

    @property
    def deadline(self) -> float:
        """On trio's clock; infinite when the client set none."""
        return self.scope.deadline

    @property
    def peer(self) -> str:
        """The client's address, as gRPC writes it: ``ipv4:127.0.0.1:40123``, ``unix:``."""
        return str(self._call.peer().decode())

    def metadata(self) -> Metadata:
        """What the client sent with the call."""
        return tuple((key, value) for key, value in self._metadata)

    def identity(self) -> dict[str, list[bytes]]:
        """What the client's certificate says about it; empty without one."""
        found = cygrpc.auth_context(self._call) or {}
        return {key.decode(): list(values) for key, values in found.items()}

    async def receive(self) -> bytes | None:
        """The client's next message; ``None`` when it sends no more.

        **Cancellation**: loses nothing.
        """
        message = await self._messages.receive()
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
        sent = await self._messages.send(data, first)
        self._began = self._began or sent
        return sent

    def accept(self) -> None:
        """Tell the client that the call is taken, before there is a message for it."""
        if not self._began:
            self._began = True
            self._start((_accept(),), _nothing)

    async def finish(self, error: RpcError | None, answer: bytes | None = None) -> None:
        """End the call, with the only answer of a unary one."""
        if not await self._last_message_taken():
            return
        code, details, trailing = StatusCode.OK, "", Metadata()
        if error is not None:
            code, details, trailing = error.code, error.details, error.trailing
            answer = None
        operations: list[Any] = []
        if not self._began:
            operations.append(cygrpc.SendInitialMetadataOperation((), NO_FLAGS))
        if answer is not None:
            operations.append(cygrpc.SendMessageOperation(answer, NO_FLAGS))
        text = details.encode("utf-8", "replace")[:_LONGEST_DETAILS].decode("utf-8", "ignore")
        operations.append(
            cygrpc.SendStatusFromServerOperation(trailing, int(code), text.encode(), NO_FLAGS)
        )
        self._start(tuple(operations), _nothing)

    async def _last_message_taken(self) -> bool:
        """Wait until a status can be sent; false when nobody would get it."""
        if self._began:
            with trio.move_on_after(_LAST_MESSAGE_S, shield=True):
                await self._messages.wait_sent()
        return not self.given_up

    def _on_close(self, event: Event) -> None:
        self._over = True
        if event.batch_operations[0].cancelled():
            self.given_up = True
            self.scope.cancel()


def _accept() -> Any:
    return cygrpc.SendInitialMetadataOperation(ACCEPTED, NO_FLAGS)


def _start(
    gate: Gate, call: Any, operations: tuple[Any, ...], done: Callable[[Event], None]
) -> bool:
    # an error code means that `done` is never called; C-core has none that could be helped
    return gate.open and not call.start_server_batch(operations, done)


def _nothing(event: Event) -> None:
    """The call is over; there is nobody left to tell."""
