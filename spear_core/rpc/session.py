"""Requests, answers, notices and cancellation over any channel.

A caller sends in its own task and parks; the one reading task wakes it directly with its answer.
That is the cheapest of the designs we measured under trio.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from spear_core.api import Channel, Message, MessageFlag, MessageKind, OwnedFd
from spear_core.errors import (
    ChannelBrokenError,
    ChannelClosedError,
    ChannelError,
    InvalidRequestError,
    ProtocolError,
    ResourceExhaustedError,
    SpearError,
    TaskCancelledError,
)
from spear_core.rpc._assembly import Assembler, TooLarge
from spear_core.rpc._outbox import Outbox
from spear_core.rpc._payloads import CHUNK, PayloadSender
from spear_core.rpc._peer_requests import Handler, PeerRequests, SessionLimits, StreamHandler
from spear_core.rpc._pending import Pending
from spear_core.rpc._serving import Call, Payload, Reply
from spear_core.rpc._stream import Stream
from spear_core.rpc.codec import (
    RequestHead,
    decode_head,
    encode_head,
    encode_small_head,
    error_from_head,
    error_to_head,
)

__all__ = ["Call", "Reply", "Session", "SessionLimits", "Stream", "open_session"]

_CLOSE_GRACE_S = 2.0
_BEGUN_AT_ONCE = 8
"""Requests that one peer has begun in one pass of trio's scheduler: one that sends many at a time
holds up everybody else's for as long as that takes."""

_LIMITS = SessionLimits()

_log = logging.getLogger("spear.rpc")


NoticeHandler = Callable[[Call], None]


class Session:
    """One end of the protocol; made by :func:`open_session`.

    It has more methods than a class should: one for each kind of message, all on one state.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        initiator: bool,
        handler: Handler | None,
        on_notice: NoticeHandler | None,
        on_stream: StreamHandler | None,
        limits: SessionLimits,
    ) -> None:
        self._channel = channel
        self._on_notice = on_notice
        self._limits = limits
        self._next_id = 2 if initiator else 1
        self._peer_parity = 1 if initiator else 0
        self._pending: dict[int, Pending] = {}
        self._streams: dict[int, Stream] = {}
        self._assembler = Assembler(max_message=limits.max_message, max_total=limits.max_assembling)
        self._pings: dict[bytes, trio.Event] = {}
        self._notice_turn = trio.Lock()
        self._outbox = Outbox(channel, self._unread)
        self._sender = PayloadSender(channel, max_message=limits.max_message)
        self._peers = PeerRequests(
            channel,
            self._sender,
            handler=handler,
            on_stream=on_stream,
            limits=limits,
            streams=self._streams,
            new_stream=self._new_stream,
        )
        self._background = trio.CancelScope(shield=True)
        self._peer_going = ""
        self._closed = trio.Event()
        self._reason = ""
        self._ours = False
        self._on_kind: dict[int, Callable[[Message], None]] = {
            MessageKind.REQUEST: self._got_request,
            MessageKind.RESPONSE: self._got_response,
            MessageKind.DATA: self._got_data,
            MessageKind.CREDIT: self._got_credit,
            MessageKind.CANCEL: self._got_cancel,
            MessageKind.PING: self._got_ping,
            MessageKind.PONG: self._got_pong,
            MessageKind.GOAWAY: self._got_goaway,
            MessageKind.NOTICE: self._got_notice,
        }

    # What this side does.

    async def request(
        self,
        method: str,
        args: Mapping[str, Any] | None = None,
        payload: Payload = b"",
        *,
        fd: OwnedFd | None = None,
    ) -> Reply:
        """Ask the peer and wait for its answer.

        :param fd: a file to go along, which stays the caller's to close; only where the channel
            passes them (:attr:`passes_fds`), and beside at most 256 KiB.

        **Raises** the peer's :exc:`~spear_core.errors.SpearError`,
        :exc:`~spear_core.errors.ChannelBrokenError` when the channel ends first or the peer takes
        no new requests, :exc:`~spear_core.errors.ChannelClosedError` after the session's end on
        this side, :exc:`~spear_core.errors.InvalidRequestError` for more than fits.
        **Cancellation**: leaves at once and tells the peer, which cancels its handler.
        """
        head = encode_small_head({"method": method, "args": args or {}})
        id_ = self._new_id()
        pending = self._pending[id_] = Pending()
        try:
            if fd is not None:
                self._sender.check_beside_fd(payload)
            await self._sender.send(MessageKind.REQUEST, id_, 0, head, payload, fd)
            return await pending.wait()
        except trio.Cancelled:
            if pending.answer is None:
                self._post(Message(MessageKind.CANCEL, id_, 0, encode_head({"reason": ""})))
            raise
        finally:
            del self._pending[id_]
            self._assembler.drop(id_)

    @asynccontextmanager
    async def open_stream(
        self, method: str, args: Mapping[str, Any] | None = None, payload: Payload = b""
    ) -> AsyncGenerator[Stream]:
        """Open a stream that the peer's ``on_stream`` serves; leaving the block ends it.

        Leaving before the peer has answered cancels its side. **Raises** as :meth:`request` for
        its own side; :meth:`Stream.receive` and :meth:`Stream.result` raise what the peer raises.
        """
        head = encode_small_head({"method": method, "args": args or {}})
        if len(payload) > CHUNK:
            raise InvalidRequestError(
                f"a stream opens with at most {CHUNK} bytes, these are {len(payload)}"
            )
        id_ = self._new_id()
        stream = self._streams[id_] = self._new_stream(id_)
        try:
            await self._sender.send(MessageKind.REQUEST, id_, MessageFlag.STREAM, head, payload)
            yield stream
        finally:
            del self._streams[id_]
            self._assembler.drop(id_)
            if not stream.answered:
                self._post(Message(MessageKind.CANCEL, id_))
            stream.break_(ChannelClosedError("the stream's block has ended"))

    async def notify(
        self, method: str, args: Mapping[str, Any] | None = None, payload: Payload = b""
    ) -> None:
        """Tell the peer something that has no answer. **Raises** as :meth:`request` does for
        its own side. **Cancellation**: the peer got all of it or nothing."""
        self._check_open()
        head = encode_small_head({"method": method, "args": args or {}})
        if len(payload) <= CHUNK:
            await self._sender.send(MessageKind.NOTICE, 0, 0, head, payload)
            return
        async with self._notice_turn:  # they all have the id 0, so their pieces may not mix
            await self._outbox.wait_empty()  # the CANCEL of an earlier one goes first
            self._check_open()
            try:
                await self._sender.send(MessageKind.NOTICE, 0, 0, head, payload)
            except trio.Cancelled:
                self._post(Message(MessageKind.CANCEL, 0))
                raise

    async def ping(self) -> float:
        """Seconds until the peer's session has answered. **Raises** as :meth:`request`."""
        self._check_open()
        token = secrets.token_bytes(8)
        answered = self._pings[token] = trio.Event()
        started = trio.current_time()
        try:
            await self._channel.send(Message(MessageKind.PING, payload=token))
            await answered.wait()
        finally:
            del self._pings[token]
        self._check_open()
        return trio.current_time() - started

    async def goaway(self, reason: str = "") -> None:
        """Take no new requests from now on and tell the peer; those under way go on."""
        self._peers.going = True
        if not self._closed.is_set():
            await self._channel.send(
                Message(MessageKind.GOAWAY, head=encode_head({"reason": reason}))
            )

    async def wait_idle(self) -> None:
        """Wait until none of the peer's requests is under way and every answer is sent."""
        await self._peers.wait_idle()

    async def wait_closed(self) -> str:
        """Wait until the session has ended and return why, in one line."""
        await self._closed.wait()
        return self._reason

    @property
    def passes_fds(self) -> bool:
        """Whether files can go along with requests and answers."""
        return self._channel.passes_fds

    @property
    def takes_requests(self) -> bool:
        """False once the session has ended, or the peer has said that it takes no more."""
        return not (self._closed.is_set() or self._peer_going)

    # The machinery.

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise self._error()

    def _error(self) -> ChannelError:
        if self._ours:
            return ChannelClosedError(self._reason)
        return ChannelBrokenError(self._reason)

    def _new_id(self) -> int:
        self._check_open()
        if self._peer_going:
            raise ChannelBrokenError(f"the other side takes no new requests: {self._peer_going}")
        id_ = self._next_id
        self._next_id += 2
        return id_

    def _new_stream(self, id_: int) -> Stream:
        return Stream(
            id_,
            send=self._channel.send,
            post=self._post,
            max_message=self._limits.max_message,
        )

    def _post(self, message: Message) -> None:
        """Send from a place that cannot wait."""
        if self._closed.is_set():
            return
        self._outbox.post(message)

    def _post_error(self, id_: int, error: SpearError) -> None:
        self._post(Message(MessageKind.RESPONSE, id_, MessageFlag.ERROR, error_to_head(error)))

    def _unread(self) -> None:
        self._end("the other side asks and does not read the answers")

    async def _run(self, nursery: trio.Nursery) -> None:
        """Read and post until the end, whoever cancels meanwhile; then close the channel.

        :param nursery: where the handlers live; its block is :func:`open_session`'s own.
        """
        self._peers.open(nursery)
        try:
            with self._background:
                async with trio.open_nursery() as background:
                    background.start_soon(self._outbox.run)
                    reason = await self._read()
                    self._end(reason)
        finally:
            with trio.move_on_after(_CLOSE_GRACE_S, shield=True):
                await self._channel.aclose()

    async def _read(self) -> str:
        begun = 0
        try:
            while True:
                message = await self._channel.receive()
                if message.fd is not None:
                    _check_fd_has_place(message)
                if (action := self._on_kind.get(message.kind)) is not None:
                    action(message)
                elif message.flags & MessageFlag.CRITICAL or message.kind <= MessageKind.NOTICE:
                    raise ProtocolError(f"unexpected message of kind {message.kind}")
                if message.kind == MessageKind.REQUEST:
                    begun += 1
                    if begun % _BEGUN_AT_ONCE == 0:
                        await trio.lowlevel.checkpoint()
        except trio.EndOfChannel:
            return "the other side has closed the connection"
        except ChannelError as exc:
            return exc.message

    def _end(self, reason: str, *, ours: bool = False) -> None:
        """Nothing goes on from here: fail what waits, cancel what runs. Does no more than that."""
        if self._closed.is_set():
            return
        self._reason, self._ours = reason, ours
        self._closed.set()
        self._background.cancel()
        for pending in self._pending.values():
            pending.settle(self._error())
        for answered in self._pings.values():
            answered.set()
        for stream in self._streams.values():
            stream.lose(self._error())
        self._peers.cancel_all()

    # What the peer does.

    def _got_request(self, message: Message) -> None:
        id_ = message.id
        if id_ == 0 or id_ & 1 != self._peer_parity:
            raise ProtocolError(f"a request with id {id_}, which is not the sender's to give")
        if id_ in self._assembler:
            raise ProtocolError(f"a second request with id {id_} while the first is under way")
        if (refusal := self._peers.take(message)) is not None:
            self._post_error(id_, refusal)
        elif message.flags & MessageFlag.MORE:
            self._begin(message)

    def _got_response(self, message: Message) -> None:
        id_ = message.id
        if id_ == 0 or id_ & 1 == self._peer_parity or id_ >= self._next_id:
            raise ProtocolError(f"an answer to id {id_}, which was never asked")
        settle = self._settler(id_)
        if settle is None:
            return  # whoever asked did not wait for it
        if message.flags & MessageFlag.ERROR:
            settle(error_from_head(message.head))
        elif message.flags & MessageFlag.MORE:
            self._begin(message)
        else:
            settle(Reply(decode_head(message.head, dict), message.payload, message.fd))

    def _settler(self, id_: int) -> Callable[[Reply | Exception], None] | None:
        """What takes the answer to a request of ours."""
        if (pending := self._pending.get(id_)) is not None:
            return pending.settle
        if id_ & 1 != self._peer_parity and (stream := self._streams.get(id_)) is not None:
            return stream.settle
        return None

    def _got_notice(self, message: Message) -> None:
        if message.flags & MessageFlag.MORE:
            self._begin(message)
            return
        head = decode_head(message.head, RequestHead)
        if self._on_notice is not None:
            try:
                self._on_notice(Call(head.method, head.args, message.payload))
            except Exception:  # barrier: one observer
                _log.exception("the notice %s could not be handled", head.method)

    def _begin(self, message: Message) -> None:
        if message.id in self._assembler:
            raise ProtocolError(f"a second message with id {message.id} before the first's end")
        try:
            self._assembler.begin(message)
        except TooLarge:
            self._too_large(message)

    def _got_data(self, message: Message) -> None:
        if message.id not in self._assembler:
            if (stream := self._streams.get(message.id)) is not None:
                stream.got_data(message)
            return  # else of a request that was cancelled or refused meanwhile
        first = self._assembler.first(message.id)
        try:
            whole = self._assembler.add(message)
        except TooLarge:
            self._too_large(first)
            return
        if whole is None:
            return
        if whole.kind == MessageKind.REQUEST:
            self._peers.start(whole)
        else:
            self._on_kind[whole.kind](whole)

    def _too_large(self, first: Message) -> None:
        error = ResourceExhaustedError(
            f"a payload of more than {self._limits.max_message} bytes, or too many large ones at"
            " once on this connection",
            retryable=False,
        )
        if first.kind == MessageKind.REQUEST:
            self._post_error(first.id, error)
        elif (settle := self._settler(first.id)) is not None:
            settle(error)

    def _got_cancel(self, message: Message) -> None:
        if not self._peers.cancel(message.id) and message.id in self._assembler:
            self._assembler.drop(message.id)
            if message.id:
                self._post_error(message.id, TaskCancelledError("cancelled by its caller"))

    def _got_credit(self, message: Message) -> None:
        if (stream := self._streams.get(message.id)) is not None:
            stream.got_credit(message)

    def _got_ping(self, message: Message) -> None:
        if len(message.payload) > 64:
            raise ProtocolError(f"a ping of {len(message.payload)} bytes; at most 64 are allowed")
        self._post(Message(MessageKind.PONG, payload=message.payload))

    def _got_pong(self, message: Message) -> None:
        if (answered := self._pings.get(bytes(message.payload))) is not None:
            answered.set()

    def _got_goaway(self, message: Message) -> None:
        head = decode_head(message.head, dict)
        self._peer_going = str(head.get("reason") or "it is shutting down")


def _check_fd_has_place(message: Message) -> None:
    """**Raises** :exc:`ProtocolError` unless it came with a request or an answer, whole."""
    known = message.kind in (MessageKind.REQUEST, MessageKind.RESPONSE)
    if not known or message.flags & (MessageFlag.MORE | MessageFlag.STREAM):
        assert message.fd is not None
        message.fd.close()
        raise ProtocolError(f"a file descriptor with a message of kind {message.kind}")


@asynccontextmanager
async def open_session(
    channel: Channel,
    *,
    initiator: bool,
    handler: Handler | None = None,
    on_notice: NoticeHandler | None = None,
    on_stream: StreamHandler | None = None,
    limits: SessionLimits = _LIMITS,
) -> AsyncGenerator[Session]:
    """Speak the protocol on ``channel`` while the block lasts; the channel is closed after it.

    :param initiator: True on the side that connected.
    :param handler: answers the peer's requests, each in a task of its own that is cancelled when
        the peer cancels the request or the session ends. What it raises reaches the peer. Such a
        task serves further requests afterwards, so context variables it sets stay set.
    :param on_notice: called for each notice, in order; quick and never raising.
    :param on_stream: serves the peer's streams like ``handler``; its answer ends the stream.

    The session works on while the surrounding scope is cancelled, until the block is left, so that
    clean-up can still talk to the peer. When the peer ends it the block goes on; see
    :meth:`Session.wait_closed`.
    """
    session = Session(
        channel,
        initiator=initiator,
        handler=handler,
        on_notice=on_notice,
        on_stream=on_stream,
        limits=limits,
    )
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session._run, nursery)
            try:
                yield session
            except Exception as exc:  # barrier: carried past the nursery so that it stays as it is
                failure = exc
            finally:
                session._end("the session is over", ours=True)
                nursery.cancel_scope.cancel()
    finally:
        if failure is not None:
            raise failure
