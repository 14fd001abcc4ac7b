# ruff: noqa: ASYNC230, SIM115 - the planted bugs
"""Transports with one planted bug each, and the suite test that must catch it.

Run by ``test_mutants.py``, never by name. The docstring says what is wrong; the ``Sound…`` one is
without a bug and must pass everything.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import trio

from spear_core.api import (
    Channel,
    ChannelListener,
    ChannelStatistics,
    Message,
    OwnedFd,
    PluginContext,
    Transport,
    TransportSpec,
)
from spear_core.errors import (
    ChannelBrokenError,
    ChannelClosedError,
    ChannelError,
)
from spear_core.testing import (
    TransportContract,
)


@attrs.frozen(kw_only=True)
class NoConfig:
    """Nothing to set."""


class Pipe:
    """One direction of a channel: a queue of messages, bounded by their bytes."""

    limit: float = 1 << 20

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.ended = False
        self.dropped = False
        self.changed = trio.lowlevel.ParkingLot()

    def size(self) -> int:
        return sum(len(m.payload) for m in self.messages)


class SoundChannel(Channel):
    """A channel within one process, without a bug."""

    pipe_cls: ClassVar[type[Pipe]] = Pipe
    can_pass_fds = True
    passes_fds = False

    def __init__(self, out: Pipe, into: Pipe) -> None:
        self._out = out
        self._into = into
        self._closed = False
        self._receiving = False
        self._sent = [0, 0]
        self._received = [0, 0]

    def pass_fds(self) -> None:
        self.passes_fds = True

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self._check_fd(message)
        while True:
            if self._closed:
                raise ChannelClosedError("closed")
            if self._out.dropped:
                raise ChannelBrokenError("the peer is gone")
            if self._out.size() < self._out.limit:
                break
            await self._out.changed.park()
        fd = message.fd and self._copied(message.fd)
        self._put(attrs.evolve(message, payload=bytes(message.payload), fd=fd))
        self._count(self._sent, message)
        self._out.changed.unpark_all()

    def _check_fd(self, message: Message) -> None:
        if message.fd is not None and not self.passes_fds:
            raise ValueError("not agreed on")

    def _copied(self, fd: OwnedFd) -> OwnedFd:
        return OwnedFd(os.dup(fd.fileno()))

    def _put(self, message: Message) -> None:
        self._out.messages.append(message)

    async def receive(self) -> Message:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            await self._wait_readable()
        finally:
            self._receiving = False
        message = self._into.messages.popleft()
        self._count(self._received, message)
        self._into.changed.unpark_all()
        return message

    async def _wait_readable(self) -> None:
        while True:
            if self._closed:
                raise ChannelClosedError("closed")
            if self._into.messages:
                return
            if self._into.ended:
                raise trio.EndOfChannel
            await self._into.changed.park()

    def _count(self, counter: list[int], message: Message) -> None:
        counter[0] += 1
        counter[1] += len(message.head) + len(message.payload)

    async def aclose(self) -> None:
        self._closed = True
        self._out.ended = True
        self._into.dropped = True
        self._into.messages = deque(attrs.evolve(m, fd=None) for m in self._into.messages)
        self._out.changed.unpark_all()
        self._into.changed.unpark_all()
        await trio.lowlevel.checkpoint()

    @property
    def is_connected(self) -> bool:
        return not (self._closed or self._out.dropped or self._into.ended)

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            messages_sent=self._sent[0],
            bytes_sent=self._sent[1],
            messages_received=self._received[0],
            bytes_received=self._received[1],
        )


class SoundListener(ChannelListener):
    def __init__(self, address: str) -> None:
        self.address = address
        self.waiting: deque[Channel] = deque()
        self.changed = trio.lowlevel.ParkingLot()
        self.closed = False

    async def accept(self) -> Channel:
        await trio.lowlevel.checkpoint()
        while not self.waiting:
            if self.closed:
                raise ChannelClosedError("closed")
            await self.changed.park()
        return self.waiting.popleft()

    async def aclose(self) -> None:
        self.closed = True
        self.changed.unpark_all()
        await trio.lowlevel.checkpoint()


class SoundTransport(Transport):
    """A transport within one process, without a bug."""

    channel_cls: ClassVar[type[SoundChannel]] = SoundChannel
    listener_cls: ClassVar[type[SoundListener]] = SoundListener

    def __init__(self) -> None:
        self.listeners: dict[str, SoundListener] = {}

    def new_address(self, name: str) -> str:
        return f"toy:{name}"

    async def connect(self, address: str) -> Channel:
        await trio.lowlevel.checkpoint()
        listener = self._listener(address)
        there, back = self.channel_cls.pipe_cls(), self.channel_cls.pipe_cls()
        listener.waiting.append(self.channel_cls(back, there))
        listener.changed.unpark_all()
        return self.channel_cls(there, back)

    def _listener(self, address: str) -> SoundListener:
        if address not in self.listeners:
            raise ChannelError(f"nobody listens at {address!r}")
        return self.listeners[address]

    @asynccontextmanager
    async def listen(self, address: str) -> AsyncGenerator[ChannelListener, None]:
        if not address.startswith("toy:"):
            raise ChannelError(f"{address!r} is no toy: address")
        if address in self.listeners:
            raise ChannelError(f"{address!r} is taken")
        listener = self.listeners[address] = self.listener_cls(address)
        try:
            yield listener
        finally:
            await self._free(address)

    async def _free(self, address: str) -> None:
        del self.listeners[address]


def transport_spec(make: Callable[[], Transport], name: str = "toy") -> TransportSpec[NoConfig]:
    @asynccontextmanager
    async def open_toy(context: PluginContext, config: NoConfig) -> AsyncGenerator[Transport, None]:
        yield make()

    return TransportSpec(name=name, open=open_toy, config_cls=NoConfig)


def with_channel(cls: type[SoundChannel]) -> TransportSpec[NoConfig]:
    """A spec whose transport makes this kind of channel."""
    return transport_spec(type("Planted", (SoundTransport,), {"channel_cls": cls}))


class TestSoundTransport(TransportContract):
    spec = transport_spec(SoundTransport)
    patience = 5.0
    passes_fds = True


class TransportMutant(TransportContract):
    patience = 0.7
    passes_fds = True


class TestReorders(TransportMutant):
    """A channel whose later small messages overtake earlier big ones."""

    caught_by = "test_unread_messages_survive_the_close"

    class Planted(SoundChannel):
        def _put(self, message: Message) -> None:
            queue = self._out.messages
            index = len(queue)
            while index and len(queue[index - 1].payload) > len(message.payload):
                index -= 1
            queue.insert(index, message)

    spec = with_channel(Planted)


class TestSwapsNeighbours(TransportMutant):
    """A channel that swaps two messages when a hundred are waiting."""

    caught_by = "test_messages_arrive_in_order_both_ways"

    class Planted(SoundChannel):
        def _put(self, message: Message) -> None:
            super()._put(message)
            if message.id and message.id % 100 == 0 and len(self._out.messages) > 1:
                self._out.messages.rotate(1)

    spec = with_channel(Planted)


class TestSplitsBigMessages(TransportMutant):
    """A channel that delivers a big payload as two messages."""

    caught_by = "test_big_payloads_arrive_both_ways"

    class Planted(SoundChannel):
        def _put(self, message: Message) -> None:
            middle = 1 << 20
            super()._put(attrs.evolve(message, payload=message.payload[:middle]))
            if message.payload[middle:]:
                super()._put(attrs.evolve(message, payload=message.payload[middle:]))

    spec = with_channel(Planted)


class TestDropsUnknownKinds(TransportMutant):
    """A channel that drops messages of a kind it does not know."""

    caught_by = "test_unknown_kinds_flags_and_ids_pass"

    class Planted(SoundChannel):
        def _put(self, message: Message) -> None:
            if 1 <= message.kind <= 11:
                super()._put(message)

    spec = with_channel(Planted)


class TestMasksFlags(TransportMutant):
    """A channel that keeps only the flags of this version."""

    caught_by = "test_unknown_kinds_flags_and_ids_pass"

    class Planted(SoundChannel):
        def _put(self, message: Message) -> None:
            super()._put(attrs.evolve(message, flags=message.flags & 0x8F))

    spec = with_channel(Planted)


class TestTruncatesIds(TransportMutant):
    """A channel with 32-bit ids."""

    caught_by = "test_unknown_kinds_flags_and_ids_pass"

    class Planted(SoundChannel):
        def _put(self, message: Message) -> None:
            super()._put(attrs.evolve(message, id=message.id & 0xFFFFFFFF))

    spec = with_channel(Planted)


class TestSharesTheBuffer(TransportMutant):
    """A channel that hands the sender's own bytearray to the receiver."""

    caught_by = "test_any_buffer_can_be_sent"

    class Planted(SoundChannel):
        async def send(self, message: Message) -> None:
            await super().send(message)
            self._out.messages[-1] = message

    spec = with_channel(Planted)


class TestInterleavesSenders(TransportMutant):
    """A channel that mixes the messages of tasks that send at the same time."""

    caught_by = "test_many_tasks_may_send"

    class Planted(SoundChannel):
        _partial: bytes | None = None

        async def send(self, message: Message) -> None:
            self._partial = bytes(message.payload)
            await trio.lowlevel.checkpoint()
            await super().send(attrs.evolve(message, payload=self._partial))

    spec = with_channel(Planted)


class TestNoBackpressure(TransportMutant):
    """A channel that buffers without limit."""

    caught_by = "test_slow_reader_stops_the_sender"

    class Planted(SoundChannel):
        class pipe_cls(Pipe):  # noqa: N801
            limit = math.inf

    spec = with_channel(Planted)
    patience = 5.0
    max_buffered = 8 << 20


class TestNeverResumes(TransportMutant):
    """A channel that does not wake its sender when there is room again."""

    caught_by = "test_slow_reader_stops_the_sender"

    class Planted(SoundChannel):
        async def receive(self) -> Message:
            parked = self._into.changed
            self._into.changed = trio.lowlevel.ParkingLot()
            try:
                return await super().receive()
            finally:
                self._into.changed = parked

    spec = with_channel(Planted)


class TestHalfSentOnCancel(TransportMutant):
    """A channel that leaves half a message behind when a waiting send is cancelled."""

    caught_by = "test_cancelled_send_is_whole_or_nothing"

    class Planted(SoundChannel):
        async def send(self, message: Message) -> None:
            try:
                await super().send(message)
            except trio.Cancelled:
                self._put(attrs.evolve(message, payload=bytes(message.payload)[: 1 << 14]))
                raise

    spec = with_channel(Planted)


class TestBreaksOnCancel(TransportMutant):
    """A channel that is closed by cancelling a send."""

    caught_by = "test_cancelled_send_is_whole_or_nothing"

    class Planted(SoundChannel):
        async def send(self, message: Message) -> None:
            try:
                await super().send(message)
            except trio.Cancelled:
                await self.aclose()
                raise

    spec = with_channel(Planted)


class TestDropsOnCancel(TransportMutant):
    """A channel that takes a message from the queue and then loses it to a cancellation."""

    caught_by = "test_receive_cancelled_as_a_message_arrives"

    class Planted(SoundChannel):
        async def receive(self) -> Message:
            message = await super().receive()
            await trio.lowlevel.checkpoint()
            return message

    spec = with_channel(Planted)


class TestForgetsOnClose(TransportMutant):
    """A channel that drops what was sent and not yet read when it is closed."""

    caught_by = "test_unread_messages_survive_the_close"

    class Planted(SoundChannel):
        async def aclose(self) -> None:
            self._out.messages.clear()
            await super().aclose()

    spec = with_channel(Planted)


class TestNeverEnds(TransportMutant):
    """A channel whose peer waits for ever after a close."""

    caught_by = "test_peer_gets_everything_then_the_end"

    class Planted(SoundChannel):
        async def aclose(self) -> None:
            await super().aclose()
            self._out.ended = False

    spec = with_channel(Planted)


class TestEndsWithAnError(TransportMutant):
    """A channel that reports a clean end as broken."""

    caught_by = "test_peer_gets_everything_then_the_end"

    class Planted(SoundChannel):
        async def receive(self) -> Message:
            try:
                return await super().receive()
            except trio.EndOfChannel:
                raise ChannelBrokenError("connection reset") from None

    spec = with_channel(Planted)


class TestClosesOnce(TransportMutant):
    """A channel that objects to being closed twice."""

    caught_by = "test_closing_twice_is_fine"

    class Planted(SoundChannel):
        async def aclose(self) -> None:
            if self._closed:
                raise ChannelClosedError("closed already")
            await super().aclose()

    spec = with_channel(Planted)


class TestIgnoresClose(TransportMutant):
    """A channel that still sends after it was closed."""

    caught_by = "test_closed_side_refuses_both_calls"

    class Planted(SoundChannel):
        async def send(self, message: Message) -> None:
            closed, self._closed = self._closed, False
            try:
                await super().send(message)
            finally:
                self._closed = closed

    spec = with_channel(Planted)


class TestReadsAfterClose(TransportMutant):
    """A channel that hands out what is left after it was closed on this side."""

    caught_by = "test_closed_side_refuses_both_calls"

    class Planted(SoundChannel):
        async def receive(self) -> Message:
            if self._closed and self._into.messages:
                return self._into.messages.popleft()
            return await super().receive()

    spec = with_channel(Planted)


class TestLeavesReceiversAsleep(TransportMutant):
    """A channel whose close does not wake a waiting receiver."""

    caught_by = "test_closing_wakes_a_receiver"

    class Planted(SoundChannel):
        async def aclose(self) -> None:
            lot, self._into.changed = self._into.changed, trio.lowlevel.ParkingLot()
            await super().aclose()
            self._into.changed = lot

    spec = with_channel(Planted)


class TestLeavesSendersAsleep(TransportMutant):
    """A channel whose close does not wake a waiting sender."""

    caught_by = "test_closing_wakes_a_sender"

    class Planted(SoundChannel):
        async def aclose(self) -> None:
            lot, self._out.changed = self._out.changed, trio.lowlevel.ParkingLot()
            await super().aclose()
            self._out.changed = lot

    spec = with_channel(Planted)


class TestCancelledCloseStaysOpen(TransportMutant):
    """A channel that stays open when its close is cancelled."""

    caught_by = "test_cancelled_close_closes"

    class Planted(SoundChannel):
        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()
            await super().aclose()

    spec = with_channel(Planted)


class TestSendsIntoTheVoid(TransportMutant):
    """A channel that takes messages for a peer that is gone."""

    caught_by = "test_sending_to_a_gone_peer_fails"

    class Planted(SoundChannel):
        async def aclose(self) -> None:
            await super().aclose()
            self._into.dropped = False
            self._into.messages.clear()

    spec = with_channel(Planted)


class TestForeignErrors(TransportMutant):
    """A channel that lets its library's error out when the peer is gone."""

    caught_by = "test_sending_to_a_gone_peer_fails"

    class Planted(SoundChannel):
        async def send(self, message: Message) -> None:
            try:
                await super().send(message)
            except ChannelBrokenError:
                raise trio.BrokenResourceError from None

    spec = with_channel(Planted)


class TestAlwaysConnected(TransportMutant):
    """A channel that says it is connected when the peer has closed."""

    caught_by = "test_is_connected_tells_the_truth"

    class Planted(SoundChannel):
        @property
        def is_connected(self) -> bool:
            return not self._closed

    spec = with_channel(Planted)


class TestNotBusy(TransportMutant):
    """A channel on which two tasks may receive."""

    caught_by = "test_only_one_task_receives"

    class Planted(SoundChannel):
        async def receive(self) -> Message:
            self._receiving = False
            return await super().receive()

    spec = with_channel(Planted)


class TestForgetsToCountHeads(TransportMutant):
    """A channel whose statistics leave the heads out."""

    caught_by = "test_statistics_count_messages_and_bytes"

    class Planted(SoundChannel):
        def _count(self, counter: list[int], message: Message) -> None:
            counter[0] += 1
            counter[1] += len(message.payload)

    spec = with_channel(Planted)


class TestTakesAnyResponse(TransportMutant):
    """A channel whose ``request_response`` returns whatever comes next."""

    caught_by = "test_request_response_takes_its_own_answer"

    class Planted(SoundChannel):
        async def request_response(self, request: Message) -> Message:
            await self.send(request)
            return await self.receive()

    spec = with_channel(Planted)


class TestOneAddress(TransportMutant):
    """A transport with one address for every name."""

    caught_by = "test_two_names_have_two_addresses"

    class Planted(SoundTransport):
        def new_address(self, name: str) -> str:
            return "toy:the-one"

    spec = transport_spec(Planted)


class TestKeepsTheAddress(TransportMutant):
    """A transport that never frees an address."""

    caught_by = "test_address_is_free_after_the_block"

    class Planted(SoundTransport):
        async def _free(self, address: str) -> None:
            await self.listeners[address].aclose()

    spec = transport_spec(Planted)


class TestStealsTheAddress(TransportMutant):
    """A transport that lets a second listener take an address in use."""

    caught_by = "test_used_address_is_refused"

    class Planted(SoundTransport):
        @asynccontextmanager
        async def listen(self, address: str) -> AsyncGenerator[ChannelListener, None]:
            self.listeners[address] = self.listener_cls(address)
            yield self.listeners[address]

    spec = transport_spec(Planted)


class TestForeignConnectErrors(TransportMutant):
    """A transport that lets ``OSError`` out when nobody listens."""

    caught_by = "test_connecting_to_nobody_is_refused"

    class Planted(SoundTransport):
        def _listener(self, address: str) -> SoundListener:
            if address not in self.listeners:
                raise ConnectionRefusedError(address)
            return self.listeners[address]

    spec = transport_spec(Planted)


class TestLosesAccepted(TransportMutant):
    """A listener that loses the next connection when ``accept`` is cancelled."""

    caught_by = "test_cancelled_accept_loses_no_connection"

    class Planted(SoundTransport):
        class listener_cls(SoundListener):  # noqa: N801
            lost = 0

            async def accept(self) -> Channel:
                try:
                    channel = await super().accept()
                except trio.Cancelled:
                    self.lost += 1
                    raise
                while self.lost:
                    self.lost -= 1
                    channel = await super().accept()
                return channel

    spec = transport_spec(Planted)


class TestLeaksWhenConnectIsCancelled(TransportMutant):
    """A transport that leaves a file open when ``connect`` is cancelled."""

    caught_by = "test_cancelled_connect_leaves_nothing_open"

    class Planted(SoundTransport):
        kept: ClassVar[list[Any]] = []

        async def connect(self, address: str) -> Channel:
            self.kept.append(Path("/dev/null").open())
            channel = await super().connect(address)
            self.kept.pop().close()
            return channel

    spec = transport_spec(Planted)


class TestLosesPartlyReadMessages(TransportMutant):
    """A channel that starts a message anew when ``receive`` is cancelled in its middle."""

    caught_by = "test_cancelled_receive_loses_nothing"

    class Planted(SoundChannel):
        _steps = 0

        async def receive(self) -> Message:
            try:
                return await super().receive()
            except trio.Cancelled:
                self._steps += 1
                if self._into.messages and self._steps % 3 == 0:
                    self._into.messages.popleft()
                raise

    spec = with_channel(Planted)


class TestDropsFds(TransportMutant):
    """A channel that says nothing of file descriptors and drops them."""

    caught_by = "test_says_whether_fds_can_pass"
    passes_fds = False

    class Planted(SoundChannel):
        can_pass_fds = False

        def pass_fds(self) -> None:
            raise ValueError("no file descriptors here")

        def _check_fd(self, message: Message) -> None:
            pass

        def _put(self, message: Message) -> None:
            super()._put(attrs.evolve(message, fd=None))

    spec = with_channel(Planted)


class TestPassesFdsUnasked(TransportMutant):
    """A channel that passes file descriptors before anybody has agreed on it."""

    caught_by = "test_says_whether_fds_can_pass"

    class Planted(SoundChannel):
        def _check_fd(self, message: Message) -> None:
            pass

    spec = with_channel(Planted)


class TestGivesFdsToTheNext(TransportMutant):
    """A channel that gives a file descriptor to the message after the one it came with."""

    caught_by = "test_fd_arrives_with_its_message"

    class Planted(SoundChannel):
        _come: OwnedFd | None = None

        def _put(self, message: Message) -> None:
            fd, self._come = self._come, message.fd
            super()._put(attrs.evolve(message, fd=fd))

    spec = with_channel(Planted)


class TestSharesTheFd(TransportMutant):
    """A channel that gives the receiver the sender's own file descriptor."""

    caught_by = "test_fd_is_the_receivers_own"

    class Planted(SoundChannel):
        def _copied(self, fd: OwnedFd) -> OwnedFd:
            return fd

    spec = with_channel(Planted)


class TestTakesTheSendersFd(TransportMutant):
    """A channel that closes the file descriptor it was given to send."""

    caught_by = "test_fd_is_the_receivers_own"

    class Planted(SoundChannel):
        def _copied(self, fd: OwnedFd) -> OwnedFd:
            copied = super()._copied(fd)
            fd.close()
            return copied

    spec = with_channel(Planted)


class TestSendsTheFdAhead(TransportMutant):
    """A channel that sends a file descriptor before it waits for room for its message."""

    caught_by = "test_cancelled_send_of_an_fd_is_whole_or_nothing"

    class Planted(SoundChannel):
        async def send(self, message: Message) -> None:
            if message.fd is not None:
                self._check_fd(message)
                ahead = self._out.__dict__.setdefault("ahead", deque())
                ahead.append(self._copied(message.fd))
            await super().send(attrs.evolve(message, flags=message.fd is not None, fd=None))

        async def receive(self) -> Message:
            message = await super().receive()
            if not message.flags:
                return message
            return attrs.evolve(message, flags=0, fd=self._into.__dict__["ahead"].popleft())

    spec = with_channel(Planted)


class TestLeaksUnreadFds(TransportMutant):
    """A channel that keeps the file descriptors of messages that nobody received."""

    caught_by = "test_fds_are_not_leaked"

    class Planted(SoundChannel):
        kept: ClassVar[list[OwnedFd]] = []

        async def aclose(self) -> None:
            self.kept += [m.fd for m in self._into.messages if m.fd is not None]
            await super().aclose()

    spec = with_channel(Planted)
