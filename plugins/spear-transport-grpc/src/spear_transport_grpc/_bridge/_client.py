"""A gRPC channel for trio tasks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import outcome
import trio

from spear_transport_grpc._bridge._core import NO_FLAGS, cygrpc
from spear_transport_grpc._bridge._messages import Messages
from spear_transport_grpc._bridge._poller import Event, Poller
from spear_transport_grpc._bridge._status import ACCEPTED, Metadata, RpcError, StatusCode

__all__ = ["ClientCall", "ClientChannel", "open_channel"]

_OPTIONS: Mapping[str, int | str] = {
    "grpc.enable_http_proxy": 0,  # else http_proxy is used even for 127.0.0.1
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2000,
    "grpc.use_local_subchannel_pool": 1,  # connections end with the channel that made them
}
_UNWIND_S = 5.0
"""How long C-core may take to end calls that are cancelled; it takes milliseconds."""
_SAME_INSTANT_S = 0.05
"""C-core's clock and trio's may see one deadline this far apart."""
_CANCELLED = int(StatusCode.CANCELLED)


class ClientCall:
    """A call with any number of messages either way; see :meth:`ClientChannel.open_call`."""

    def __init__(self, channel: ClientChannel) -> None:
        self._channel = channel
        self._messages = Messages(self._operate)
        self._call: Any = None
        self._status: Any = None
        self._ended = trio.Event()
        self._answered = trio.Event()
        self._accepted = False
        self._eof_sent = False

    def begin(self, method: str, metadata: Metadata) -> None:
        """Start the call."""
        operations = (
            cygrpc.SendInitialMetadataOperation(metadata, NO_FLAGS),
            cygrpc.ReceiveStatusOnClientOperation(NO_FLAGS),
        )
        head = (cygrpc.ReceiveInitialMetadataOperation(NO_FLAGS),)
        self._call = self._channel.start(
            method, ((operations, self._on_status), (head, self._on_answered))
        )

    @property
    def ended(self) -> bool:
        """The server has ended the call, or the way to it broke."""
        return self._status is not None

    async def send(self, data: bytes) -> None:
        """Send one message; waits while the server does not read.

        **Raises** :exc:`RpcError` when the call is over. **Cancellation**: it was sent or not,
        never in part.
        """
        if self._eof_sent:
            raise ValueError("nothing more can be sent after the end")
        if self.ended or not await self._messages.send(data):
            await self.wait_status()
            raise RpcError(StatusCode.CANCELLED, "the server has ended the call")

    async def send_eof(self) -> None:
        """Send nothing more; receiving goes on."""
        if not self._eof_sent:
            if await self._messages.wait_sent():
                self._operate((cygrpc.SendCloseFromClientOperation(NO_FLAGS),), _nothing)
            self._eof_sent = True

    async def receive(self) -> bytes | None:
        """The server's next message; ``None`` after the last one of a call that ended well.

        **Raises** :exc:`RpcError` when it ended otherwise. **Cancellation**: loses nothing.
        """
        message = await self._messages.receive()
        if message is None:
            await self.wait_status()
        return message

    async def wait_status(self) -> None:
        """Wait until the call has ended. **Raises** :exc:`RpcError` unless it ended well."""
        await self._ended.wait()
        error = _error(self._status)
        if error is not None:
            await _yield_to_deadline(error)
            raise error

    def cancel(self) -> None:
        """End the call here; the server's handler is cancelled."""
        if not self.ended and self._call is not None:
            self._call.cancel(_CANCELLED, "cancelled")

    async def wait_ended(self) -> None:
        """Wait until C-core has done with the call; nothing more can be done with it then."""
        await self._ended.wait()
        self._messages.release()

    def _operate(self, operations: tuple[Any, ...], done: Callable[[Event], None]) -> bool:
        return not self.ended and self._channel.operate(self._call, operations, done)

    async def wait_accepted(self) -> None:
        """Wait until the server has taken the call. **Raises** :exc:`RpcError` when it has not."""
        await self._answered.wait()
        if not self._accepted:
            await self.wait_status()
            raise RpcError(StatusCode.CANCELLED, "the server has ended the call")

    def _on_answered(self, event: Event) -> None:
        found = event.batch_operations[0].initial_metadata() or ()
        self._accepted = any(key == ACCEPTED[0][0] for key, _ in found)
        self._answered.set()

    def _on_status(self, event: Event) -> None:
        self._status = event.batch_operations[-1]
        self._ended.set()


class ClientChannel:
    """Connections to one server, made when needed; see :func:`open_channel`.

    Deadlines are trio's: a call's is that of the scopes around it, and the server learns it.
    """

    def __init__(
        self, target: str, options: Mapping[str, int | str], credentials: object | None
    ) -> None:
        core_credentials = getattr(credentials, "_credentials", None)
        self._channel = cygrpc.Channel(target.encode(), tuple(options.items()), core_credentials)
        self._outstanding = 0
        self._quiet = trio.Event()
        self._closing = False
        self._poller = Poller(self._channel.next_call_event, self._is_last)
        # A queue without a call blocks its poller for ever, and nothing but an event ends the
        # wait. This call is never sent: it lasts until it is cancelled, and its end is the last.
        self._keeper_over = False
        self._keeper = self._channel.integrated_call(
            NO_FLAGS,
            b"/",
            None,
            None,
            (),
            None,
            (((cygrpc.ReceiveStatusOnClientOperation(NO_FLAGS),), _KeeperTag()),),
            None,
        )
        self._poller.start()

    def _is_last(self, event: Event) -> bool:
        return isinstance(event.tag, _KeeperTag)

    def start(self, method: str, batches: tuple[Any, ...]) -> Any:
        """Begin a call with these batches of operations and their tags."""
        if self._closing:
            raise RpcError(StatusCode.CANCELLED, "the channel is closed")
        remaining = trio.current_effective_deadline() - trio.current_time()
        deadline = None if remaining == float("inf") else time.time() + remaining
        call = self._channel.integrated_call(
            NO_FLAGS,
            method.encode(),
            None,
            deadline,
            (),
            None,
            tuple((operations, self._counted(done)) for operations, done in batches),
            None,
        )
        self._outstanding += len(batches)
        return call

    def operate(
        self, call: Any, operations: tuple[Any, ...], done: Callable[[Event], None]
    ) -> bool:
        """Start a batch on a call; false when the call is over."""
        if not call.operate(operations, self._counted(done)):
            return False
        self._outstanding += 1
        return True

    def _counted(self, done: Callable[[Event], None]) -> Callable[[Event], None]:
        def tag(event: Event) -> None:
            self._outstanding -= 1
            if self._closing and not self._outstanding:
                self._quiet.set()
            done(event)

        return tag

    async def call(self, method: str, request: bytes, *, metadata: Metadata = ()) -> bytes:
        """One message there, one back.

        **Raises** :exc:`RpcError`. **Cancellation**: cancels the call; the server's handler is
        cancelled, and nothing of the call is left here.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()
        raise_cancel: Callable[[], Any] | None = None

        def done(event: Event) -> None:
            answer: outcome.Outcome[Any]
            if raise_cancel is not None:
                answer = outcome.capture(raise_cancel)
            else:
                answer = outcome.Value(event.batch_operations)
            trio.lowlevel.reschedule(task, answer)

        call = self.start(
            method,
            (
                (
                    (
                        cygrpc.SendInitialMetadataOperation(metadata, NO_FLAGS),
                        cygrpc.SendMessageOperation(request, NO_FLAGS),
                        cygrpc.SendCloseFromClientOperation(NO_FLAGS),
                        cygrpc.ReceiveInitialMetadataOperation(NO_FLAGS),
                        cygrpc.ReceiveMessageOperation(NO_FLAGS),
                        cygrpc.ReceiveStatusOnClientOperation(NO_FLAGS),
                    ),
                    done,
                ),
            ),
        )

        def abort(raise_: Callable[[], Any]) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raise_
            call.cancel(_CANCELLED, "cancelled")
            return trio.lowlevel.Abort.FAILED  # C-core tells us when it has let go of the call

        operations = await trio.lowlevel.wait_task_rescheduled(abort)
        error = _error(operations[-1])
        if error is not None:
            await _yield_to_deadline(error)
            raise error
        message = operations[-2].message()
        if message is None:
            raise RpcError(StatusCode.INTERNAL, "the server answered without a message")
        return bytes(message)

    @asynccontextmanager
    async def open_call(self, method: str, *, metadata: Metadata = ()) -> AsyncIterator[ClientCall]:
        """A call with streams of messages, which is cancelled if the block ends before it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        call = ClientCall(self)
        call.begin(method, metadata)
        try:
            yield call
        finally:
            call.cancel()
            with trio.CancelScope(shield=True):  # C-core answers a cancel at once, without network
                await call.wait_ended()

    async def aclose(self) -> None:
        """End every call and close the connections."""
        self._closing = True
        with trio.move_on_after(_UNWIND_S, shield=True):
            if self._outstanding:
                await self._quiet.wait()
            self._keeper.cancel(_CANCELLED, "closing")
            await self._poller.wait_over()
        self._channel.close(_CANCELLED, "closed")


class _KeeperTag:
    """Tag of the call that keeps a channel's queue awake."""

    def __call__(self, event: Event) -> None:
        """Nothing: the poller recognises it."""


def _nothing(event: Event) -> None:
    """Nobody waits for it."""


def _error(status: Any) -> RpcError | None:
    if status.code() == 0:
        return None
    trailing = tuple((key, value) for key, value in status.trailing_metadata() or ())
    details = status.details()
    text = details.decode("utf-8", "replace") if isinstance(details, bytes) else str(details or "")
    return RpcError(StatusCode.of(int(status.code())), text, trailing=trailing)


async def _yield_to_deadline(error: RpcError) -> None:
    """Let trio cancel when C-core has only seen the same deadline a little earlier."""
    if error.code is StatusCode.DEADLINE_EXCEEDED:
        deadline = trio.current_effective_deadline()
        if deadline - trio.current_time() < _SAME_INSTANT_S:
            await trio.sleep_until(deadline)
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_channel(
    target: str,
    *,
    options: Mapping[str, int | str] | None = None,
    credentials: object | None = None,
) -> AsyncIterator[ClientChannel]:
    """A channel to ``target`` (``unix:/path``, ``host:port``) while the block lasts.

    :param credentials: what ``grpc.ssl_channel_credentials`` gives; ``None``: no TLS.
    """
    channel = ClientChannel(target, {**_OPTIONS, **(options or {})}, credentials)
    try:
        yield channel
    finally:
        await channel.aclose()
