"""The contract suite for channels, whatever makes them."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import Channel, LocalChannel, Message, MessageKind
from spear_core.errors import ChannelBrokenError, ChannelClosedError
from spear_core.testing._fd_contract import ChannelPair, FdContract
from spear_core.testing._promise import promise

__all__ = ["ChannelContract", "ChannelPair", "numbered"]

_BLOCK = bytes(64 << 10)


def _content(message: Message) -> tuple[int, int, int, bytes, bytes]:
    return message.kind, message.id, message.flags, bytes(message.head), bytes(message.payload)


def numbered(number: int, payload: bytes = b"") -> Message:
    """A message with its number as id."""
    return Message(kind=MessageKind.NOTICE, id=number, head=b"%d" % number, payload=payload)


class ChannelContract(FdContract):
    """What every channel promises. A part of :class:`TransportContract`; for a channel without a
    transport, subclass it and say how to make one in :meth:`open_pair`."""

    patience: float = 60.0
    """Seconds after which a test that still waits has failed."""
    too_big: ClassVar[int | None] = None
    """Size in bytes of a payload over the channel's limit; ``None``: not tested."""
    max_buffered: ClassVar[int] = 32 << 20
    """Bytes that the channel may take from a sender whose peer does not read."""

    @abstractmethod
    def open_pair(self, tmp_path: Path) -> AbstractAsyncContextManager[ChannelPair]:
        """A connected channel, closed at the end of the block."""

    # ---- messages

    @promise
    async def test_messages_arrive_in_order_both_ways(self, tmp_path: Path) -> None:
        """A channel is ordered, in both directions at the same time."""
        messages = [numbered(n) for n in range(500)]
        async with (
            self.open_pair(tmp_path) as pair,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_exchange, pair.near, pair.far, messages)
            nursery.start_soon(_exchange, pair.far, pair.near, messages)

    @promise
    async def test_messages_sent_together_arrive_like_others(self, tmp_path: Path) -> None:
        """``send_many`` keeps the order, with itself and with ``send``, and waits for the peer."""
        sizes = [0, 1, 100, 5_000, 200_000, 3, 70_000]
        messages = [numbered(n, bytes(sizes[n % len(sizes)])) for n in range(210)]
        async with self.open_pair(tmp_path) as pair, trio.open_nursery() as nursery:

            async def send() -> None:
                for start in range(0, len(messages), 21):
                    await pair.near.send_many(messages[start : start + 10])
                    await pair.near.send(messages[start + 10])
                    await pair.near.send_many(messages[start + 11 : start + 21])

            nursery.start_soon(send)
            with trio.fail_after(self.patience):
                received = [await pair.far.receive() for _ in messages]
            assert [*map(_content, received)] == [*map(_content, messages)]
            assert pair.near.statistics().messages_sent == len(messages)

    @promise
    async def test_messages_arrive_whole_and_unchanged(self, tmp_path: Path) -> None:
        """A message is delivered whole; head and payload are never looked into."""
        chance = random.Random(1)
        sizes = [0, 1, 15, 16, 17, 255, 4096, 65535, 65536, 70_000, 262_144, 262_145, 300_001]
        messages = [
            Message(
                kind=MessageKind.REQUEST,
                id=number,
                head=chance.randbytes(chance.choice((0, 1, 300, 65535))),
                payload=chance.randbytes(size),
            )
            for number, size in enumerate(sizes)
        ]
        async with self.open_pair(tmp_path) as pair:
            await _exchange(pair.near, pair.far, messages)
            await _exchange(pair.far, pair.near, messages)

    @promise
    async def test_big_payloads_arrive_both_ways(self, tmp_path: Path) -> None:
        """Payloads of several mebibytes pass in both directions at once, without a deadlock."""
        payload = random.Random(2).randbytes((4 << 20) + 3)
        message = Message(kind=MessageKind.RESPONSE, id=3, payload=payload)
        async with (
            self.open_pair(tmp_path) as pair,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_exchange, pair.near, pair.far, [message])
            nursery.start_soon(_exchange, pair.far, pair.near, [message])

    @promise
    async def test_unknown_kinds_flags_and_ids_pass(self, tmp_path: Path) -> None:
        """Kinds and flags unknown to this version, and any 64-bit id, pass through unchanged."""
        messages = [
            Message(kind=kind, id=number, flags=flags, head=b"h", payload=b"p")
            for kind in (0, 1, 99, 255)
            for flags in (0, 64, 255)
            for number in (0, 2**32, 2**64 - 1)
        ]
        async with self.open_pair(tmp_path) as pair:
            await _exchange(pair.near, pair.far, messages)

    @promise
    async def test_any_buffer_can_be_sent(self, tmp_path: Path) -> None:
        """A payload may be bytes, bytearray or memoryview; the receiver owns what it gets."""
        mine = bytearray(b"abc" * 1000)
        async with self.open_pair(tmp_path) as pair:
            for payload in (bytes(mine), memoryview(bytes(mine))[3:], mine):
                await pair.near.send(Message(kind=MessageKind.DATA, payload=payload))
            mine[:] = b"zzz" * 1000
            assert [bytes((await pair.far.receive()).payload)[:6] for _ in range(3)] == [
                b"abcabc"
            ] * 3

    @promise
    async def test_many_tasks_may_send(self, tmp_path: Path) -> None:
        """Any number of tasks may send at the same time; no message is mixed with another."""
        async with self.open_pair(tmp_path) as pair:
            got: list[tuple[int, bytes]] = []
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    payload = bytes([number]) * (30_000 + number)
                    nursery.start_soon(_send_all, pair.near, [numbered(number, payload)] * 5)
                for _ in range(100):
                    message = await pair.far.receive()
                    got.append((message.id, bytes(message.payload)))
            assert all(body == bytes([n]) * (30_000 + n) for n, body in got)
            assert sorted(n for n, _ in got) == sorted(list(range(20)) * 5)

    @promise
    async def test_oversized_message_is_refused(self, tmp_path: Path) -> None:
        """``send`` raises ``ValueError`` for a message over the limit, and goes on working."""
        if self.too_big is None:
            pytest.skip("too_big is not set: this transport has no limit to test")
        async with self.open_pair(tmp_path) as pair:
            with pytest.raises(ValueError):  # noqa: PT011 - the words are the transport's own
                await pair.near.send(Message(kind=MessageKind.DATA, payload=bytes(self.too_big)))
            await _exchange(pair.near, pair.far, [numbered(1)])

    # ---- backpressure and cancellation

    @promise
    async def test_slow_reader_stops_the_sender(self, tmp_path: Path) -> None:
        """``send`` waits while the peer does not read, and goes on when it does."""
        async with self.open_pair(tmp_path) as pair:
            async with trio.open_nursery() as nursery:
                sender = _Sender(pair.near)
                nursery.start_soon(sender.run)
                await sender.wait_blocked(self.max_buffered)
                blocked_at = sender.sent
                await _expect_ids(pair.far, range(blocked_at + 5))
                nursery.cancel_scope.cancel()
            assert sender.sent > blocked_at

    @promise
    async def test_cancelled_send_is_whole_or_nothing(self, tmp_path: Path) -> None:
        """``send``, cancelled: the message was sent whole or not at all; the channel works on."""
        async with self.open_pair(tmp_path) as pair:
            sender = _Sender(pair.near)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.run)
                await sender.wait_blocked(self.max_buffered)
                nursery.cancel_scope.cancel()
            last = Message(kind=MessageKind.GOAWAY, id=1 << 40, payload=b"last")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.near.send, last)
                ids = []
                while (message := await pair.far.receive()).kind != MessageKind.GOAWAY:
                    assert bytes(message.payload) == _BLOCK
                    ids.append(message.id)
            assert _content(message) == _content(last)
            assert ids in (list(range(sender.sent)), list(range(sender.sent + 1)))

    @promise
    async def test_cancelled_receive_loses_nothing(self, tmp_path: Path) -> None:
        """``receive``, cancelled: no message is lost."""
        total, payload = 60, bytes(100_000)
        async with self.open_pair(tmp_path) as pair:
            got: list[int] = []
            async with trio.open_nursery() as nursery:
                messages = [numbered(n, payload) for n in range(total)]
                nursery.start_soon(_send_all, pair.near, messages)
                step = 0
                while len(got) < total:
                    step += 1
                    with trio.move_on_after(0.0001 * (step % 7)) as scope:
                        if step % 3 == 0:
                            scope.cancel()
                        message = await pair.far.receive()
                        got.append(message.id)
                        assert len(message.payload) == len(payload)
            assert got == list(range(total))

    @promise
    async def test_receive_cancelled_as_a_message_arrives(self, tmp_path: Path) -> None:
        """``receive``, cancelled in the moment a message arrives: it returns it, or leaves it for
        the next call."""
        async with self.open_pair(tmp_path) as pair:
            for delay in range(12):
                got: list[Message] = []
                scope = trio.CancelScope()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_receive_into, got, pair.far, scope)
                    await trio.testing.wait_all_tasks_blocked(0.001)
                    await pair.near.send(numbered(delay))
                    for _ in range(delay):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
                if not got:
                    got.append(await pair.far.receive())
                assert [message.id for message in got] == [delay]

    # ---- closing

    @promise
    async def test_peer_gets_everything_then_the_end(self, tmp_path: Path) -> None:
        """``aclose``: the peer receives what was sent before, then ``EndOfChannel``."""
        async with self.open_pair(tmp_path) as pair:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expect_ids, pair.far, range(50))
                await _send_all(pair.near, [numbered(n, bytes(1000 * n)) for n in range(50)])
                await pair.near.aclose()
            for _ in range(2):
                with pytest.raises(trio.EndOfChannel):
                    await pair.far.receive()

    @promise
    async def test_unread_messages_survive_the_close(self, tmp_path: Path) -> None:
        """``aclose``: what was sent and not yet read is still received."""
        async with self.open_pair(tmp_path) as pair:
            sizes = [n * 7 % 10 * 50 for n in range(10)]
            await _send_all(pair.near, [numbered(n, bytes(s)) for n, s in enumerate(sizes)])
            await pair.near.aclose()
            await _expect_ids(pair.far, range(10))
            with pytest.raises(trio.EndOfChannel):
                await pair.far.receive()

    @promise
    async def test_closing_twice_is_fine(self, tmp_path: Path) -> None:
        """``aclose`` twice, on both ends, in any order."""
        async with self.open_pair(tmp_path) as pair:
            for end in (pair.near, pair.near, pair.far, pair.far):
                await end.aclose()

    @promise
    async def test_closed_side_refuses_both_calls(self, tmp_path: Path) -> None:
        """``send`` and ``receive`` raise ``ChannelClosedError`` after ``aclose`` on this side."""
        async with self.open_pair(tmp_path) as pair:
            await pair.far.send(numbered(1))
            await pair.near.aclose()
            with pytest.raises(ChannelClosedError):
                await pair.near.send(numbered(1))
            with pytest.raises(ChannelClosedError):
                await pair.near.receive()

    @promise
    async def test_closing_wakes_a_receiver(self, tmp_path: Path) -> None:
        """``receive`` raises ``ChannelClosedError`` when it was waiting at ``aclose``."""
        async with self.open_pair(tmp_path) as pair:
            await _closing_wakes(pair.near, pair.near.receive)

    @promise
    async def test_closing_wakes_a_sender(self, tmp_path: Path) -> None:
        """``send`` raises ``ChannelClosedError`` when it was waiting at ``aclose``."""
        async with self.open_pair(tmp_path) as pair:
            await _closing_wakes(pair.near, _Sender(pair.near).run)

    @promise
    async def test_cancelled_close_closes(self, tmp_path: Path) -> None:
        """``aclose``, cancelled: closes all the same."""
        async with self.open_pair(tmp_path) as pair:
            with trio.CancelScope() as scope:
                scope.cancel()
                await pair.near.aclose()
            assert not pair.near.is_connected
            with pytest.raises(ChannelClosedError):
                await pair.near.send(numbered(1))
            with pytest.raises((trio.EndOfChannel, ChannelBrokenError)):
                await pair.far.receive()

    @promise
    async def test_sending_to_a_gone_peer_fails(self, tmp_path: Path) -> None:
        """``send`` raises ``ChannelBrokenError`` when the peer is gone, also while it waits."""
        async with self.open_pair(tmp_path) as pair:
            async with trio.open_nursery() as nursery:
                sender = _Sender(pair.near)
                nursery.start_soon(_expect_broken, sender.run)
                await sender.wait_blocked(self.max_buffered)
                await pair.far.aclose()
            await _expect_broken(_Sender(pair.near).run)

    @promise
    async def test_is_connected_tells_the_truth(self, tmp_path: Path) -> None:
        """``is_connected`` is false once either side has closed."""
        async with self.open_pair(tmp_path) as pair:
            seen = [(pair.near.is_connected, pair.far.is_connected)]
            await pair.near.aclose()
            with pytest.raises(trio.EndOfChannel):
                await pair.far.receive()
            seen.append((pair.near.is_connected, pair.far.is_connected))
            assert seen == [(True, True), (False, False)]

    @promise
    async def test_only_one_task_receives(self, tmp_path: Path) -> None:
        """``receive`` raises ``BusyResourceError`` while another receives, which goes on."""
        async with (
            self.open_pair(tmp_path) as pair,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_expect_ids, pair.far, range(1))
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(trio.BusyResourceError):
                await pair.far.receive()
            await pair.near.send(numbered(0))

    # ---- counters, requests

    @promise
    async def test_statistics_count_messages_and_bytes(self, tmp_path: Path) -> None:
        """``statistics``: messages, and bytes of heads and payloads, in both directions."""
        async with self.open_pair(tmp_path) as pair:
            assert attrs.astuple(pair.near.statistics()) == (0, 0, 0, 0)
            messages = [
                Message(kind=MessageKind.DATA, head=b"12345", payload=bytes(size))
                for size in (0, 10, 100)
            ]
            await _exchange(pair.near, pair.far, messages)
            await _exchange(pair.far, pair.near, messages[:1])
            near, far = pair.near.statistics(), pair.far.statistics()
            assert (near.messages_sent, near.bytes_sent) == (3, 125)
            assert (near.messages_received, near.bytes_received) == (1, 5)
            assert (far.messages_sent, far.bytes_sent) == (1, 5)
            assert (far.messages_received, far.bytes_received) == (3, 125)

    @promise
    async def test_request_response_takes_its_own_answer(self, tmp_path: Path) -> None:
        """``request_response`` returns the RESPONSE with the request's id and drops others."""
        async with self.open_pair(tmp_path) as pair:

            async def answer() -> None:
                request = await pair.far.receive()
                for kind, number in (
                    (MessageKind.RESPONSE, request.id + 2),
                    (MessageKind.NOTICE, request.id),
                    (MessageKind.RESPONSE, request.id),
                ):
                    payload = bytes(request.payload) + b"!"
                    await pair.far.send(Message(kind=kind, id=number, payload=payload))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                request = Message(kind=MessageKind.REQUEST, id=5, payload=b"hello")
                response = await pair.near.request_response(request)
            assert (response.kind, response.id) == (MessageKind.RESPONSE, 5)
            assert bytes(response.payload) == b"hello!"

    @promise
    async def test_request_response_notices_the_end(self, tmp_path: Path) -> None:
        """``request_response`` raises ``ChannelBrokenError`` when the channel ends unanswered."""
        async with self.open_pair(tmp_path) as pair:

            async def hang_up() -> None:
                await pair.far.receive()
                await pair.far.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hang_up)
                with pytest.raises(ChannelBrokenError):
                    await pair.near.request_response(Message(kind=MessageKind.REQUEST, id=1))

    @promise
    async def test_local_handler_runs_in_the_callers_task(self, tmp_path: Path) -> None:
        """``LocalChannel.serve``: the handler runs, and is cancelled, in the caller's task."""
        async with self.open_pair(tmp_path) as pair:
            if not isinstance(pair.far, LocalChannel):
                pytest.skip("the ends of this channel may live in two processes")
            tasks: list[object] = []

            async def handle(request: Message) -> Message:
                tasks.append(trio.lowlevel.current_task())
                if request.payload == b"wait":
                    scope.cancel()
                    await trio.sleep_forever()
                return Message(kind=MessageKind.RESPONSE, id=request.id, payload=request.payload)

            pair.far.serve(handle)
            request = Message(kind=MessageKind.REQUEST, id=1, payload=b"x")
            assert (await pair.near.request_response(request)).payload == b"x"
            with trio.CancelScope() as scope:
                await pair.near.request_response(attrs.evolve(request, payload=b"wait"))
            assert scope.cancelled_caught
            assert tasks == [trio.lowlevel.current_task()] * 2


async def _send_all(channel: Channel, messages: list[Message]) -> None:
    for message in messages:
        await channel.send(message)


async def _receive_into(got: list[Message], channel: Channel, scope: trio.CancelScope) -> None:
    with scope:
        got.append(await channel.receive())


async def _expect_ids(channel: Channel, ids: range) -> None:
    for number in ids:
        assert (await channel.receive()).id == number


async def _exchange(sender: Channel, receiver: Channel, messages: list[Message]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_all, sender, messages)
        for message in messages:
            assert _content(await receiver.receive()) == _content(message)


async def _expect_broken(call: Callable[[], Any]) -> None:
    with pytest.raises(ChannelBrokenError):
        await call()


async def _closing_wakes(channel: Channel, call: Callable[[], Any]) -> None:
    woken = trio.Event()

    async def wait() -> None:
        with pytest.raises(ChannelClosedError):
            await call()
        woken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.05)
        await channel.aclose()
        await woken.wait()


class _Sender:
    """Sends numbered blocks for ever and knows how far it has come."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.sent = 0

    async def run(self) -> None:
        while True:
            await self._channel.send(numbered(self.sent, _BLOCK))
            self.sent += 1

    async def wait_blocked(self, most: int) -> None:
        """Wait until it makes no more progress, before it has sent ``most`` bytes."""
        before = -1
        while self.sent != before or not self.sent:
            before = self.sent
            await trio.sleep(0.03)
            assert self.sent * len(_BLOCK) <= most, "the sender is never stopped: no backpressure"
