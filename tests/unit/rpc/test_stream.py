"""Streams: half-close, backpressure by credit, cancellation, and peers that cheat."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import MessageFlag, MessageKind
from spear_core.errors import (
    ChannelBrokenError,
    ChannelClosedError,
    ResourceExhaustedError,
    SpearError,
)
from spear_core.rpc import Call, Reply, SessionLimits, Stream
from spear_core.rpc.codec import encode_head, error_from_head

Open = Callable[..., AbstractAsyncContextManager[Any]]
OPEN = encode_head({"method": "chat", "args": {}})


async def echo_stream(call: Call, stream: Stream) -> Reply:
    count = 0
    while True:
        try:
            data = await stream.receive()
        except trio.EndOfChannel:
            return Reply({"count": count, **call.args}, call.payload)
        count += 1
        await stream.send(data)


async def test_messages_both_ways_and_an_answer(open_sides: Open) -> None:
    async with (
        open_sides(on_stream=echo_stream) as sides,
        sides.client.open_stream("chat", {"a": 1}, b"first") as stream,
    ):
        for message in (b"one", b"", b"x" * 65536, b"y" * 65537, bytes(1 << 20)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send, message)
                assert await stream.receive() == message
        await stream.send_eof()
        await stream.send_eof()
        for _ in range(2):
            with pytest.raises(trio.EndOfChannel):
                await stream.receive()
        reply = await stream.result()
        assert (reply.head, reply.payload) == ({"count": 5, "a": 1}, b"first")
        with pytest.raises(ChannelClosedError):
            await stream.send(b"too late")


async def test_the_server_may_close_its_half_first(open_sides: Open) -> None:
    async def speak_then_listen(call: Call, stream: Stream) -> Reply:
        await stream.send(b"hello")
        await stream.send_eof()
        with pytest.raises(ChannelClosedError):
            await stream.send(b"more")
        return Reply({"heard": (await stream.receive()).decode()})

    async with (
        open_sides(on_stream=speak_then_listen) as sides,
        sides.client.open_stream("chat") as stream,
    ):
        assert await stream.receive() == b"hello"
        with pytest.raises(trio.EndOfChannel):
            await stream.receive()
        await stream.send(b"after")
        assert (await stream.result()).head == {"heard": "after"}


async def test_an_answer_larger_than_a_frame(open_sides: Open) -> None:
    async def answer(call: Call, stream: Stream) -> Reply:
        return Reply({}, bytes(1 << 20))

    async with (
        open_sides(on_stream=answer) as sides,
        sides.client.open_stream("chat") as stream,
    ):
        assert len((await stream.result()).payload) == 1 << 20


async def test_a_slow_reader_stops_the_sender(open_sides: Open) -> None:
    go = trio.Event()

    async def listen(call: Call, stream: Stream) -> Reply:
        await go.wait()
        return await echo_count(stream)

    async def echo_count(stream: Stream) -> Reply:
        size = 0
        while True:
            try:
                size += len(await stream.receive())
            except trio.EndOfChannel:
                return Reply({"size": size})

    sent = 0
    async with (
        open_sides(on_stream=listen) as sides,
        sides.client.open_stream("chat") as stream,
        trio.open_nursery() as nursery,
    ):

        async def speak() -> None:
            nonlocal sent
            while sent < 1000:
                await stream.send(bytes(10_000))
                sent += 1
            await stream.send_eof()

        nursery.start_soon(speak)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert sent == (256 << 10) // 10_016
        go.set()
        assert (await stream.result()).head == {"size": 10_000_000}


async def test_other_requests_pass_a_blocked_stream(open_sides: Open) -> None:
    async def deaf(call: Call, stream: Stream) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    async with (
        open_sides(on_stream=deaf) as sides,
        sides.client.open_stream("chat") as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stream.send, bytes(1 << 20))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await sides.client.request("echo", {}, b"x")).payload == b"x"
        nursery.cancel_scope.cancel()


async def test_errors_come_through_the_stream(open_sides: Open) -> None:
    async def refuse(call: Call, stream: Stream) -> Reply:
        await stream.send(b"a little")
        raise ResourceExhaustedError("no more")

    async with (
        open_sides(on_stream=refuse) as sides,
        sides.client.open_stream("chat") as stream,
    ):
        assert await stream.receive() == b"a little"
        with pytest.raises(ResourceExhaustedError, match="no more"):
            await stream.receive()
        with pytest.raises(ResourceExhaustedError, match="no more"):
            await stream.result()


async def test_leaving_the_block_cancels_the_server(open_sides: Open) -> None:
    ended = trio.Event()

    async def wait(call: Call, stream: Stream) -> Reply:
        try:
            await stream.receive()
        finally:
            ended.set()
        raise AssertionError

    async with open_sides(on_stream=wait) as sides:
        async with sides.client.open_stream("chat") as stream:
            await sides.client.ping()
        with trio.fail_after(60):
            await ended.wait()
        with pytest.raises(ChannelClosedError):
            await stream.send(b"x")
        await sides.client.ping()
        assert not sides.server._streams
        assert not sides.client._streams


async def test_a_cut_message_ends_the_sending_half(open_sides: Open) -> None:
    async def deaf(call: Call, stream: Stream) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    async with (
        open_sides(on_stream=deaf) as sides,
        sides.client.open_stream("chat") as stream,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, bytes(1 << 20))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with pytest.raises(ChannelClosedError):
            await stream.send(b"x")


async def test_the_sessions_end_breaks_streams(open_sides: Open) -> None:
    async def wait(call: Call, stream: Stream) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    async with (
        open_sides(on_stream=wait) as sides,
        sides.client.open_stream("chat") as stream,
    ):
        await sides.client.ping()
        await sides.server._channel.aclose()
        with pytest.raises(ChannelBrokenError):
            await stream.receive()
        with pytest.raises(ChannelBrokenError):
            await stream.result()
        with pytest.raises(ChannelBrokenError):
            await stream.send(b"x")


async def test_what_came_before_the_sessions_end_is_not_lost(open_sides: Open) -> None:
    async def speak(call: Call, stream: Stream) -> Reply:
        await stream.send(b"one")
        await stream.send(b"two")
        await trio.sleep_forever()
        raise AssertionError

    async with (
        open_sides(on_stream=speak) as sides,
        sides.client.open_stream("chat") as stream,
    ):
        assert await stream.receive() == b"one"
        await sides.client.ping()
        await sides.server._channel.aclose()
        await sides.client.wait_closed()
        assert await stream.receive() == b"two"
        with pytest.raises(ChannelBrokenError):
            await stream.receive()


async def test_one_task_each_way(open_sides: Open) -> None:
    async def wait(call: Call, stream: Stream) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    async with (
        open_sides(on_stream=wait) as sides,
        sides.client.open_stream("chat") as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stream.receive)
        nursery.start_soon(stream.send, bytes(1 << 20))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive()
        with pytest.raises(trio.BusyResourceError):
            await stream.send(b"x")
        nursery.cancel_scope.cancel()


async def test_without_a_stream_handler_they_are_refused(open_sides: Open) -> None:
    async with open_sides() as sides, sides.client.open_stream("chat") as stream:
        with pytest.raises(SpearError) as caught:
            await stream.receive()
        assert caught.value.code == "unimplemented"


async def deaf(call: Call, stream: Stream) -> Reply:
    await trio.sleep_forever()
    raise AssertionError


CHEATS = {
    "more than was granted": [(MessageKind.DATA, 0, b"", bytes(100_000))] * 3,
    "data after the end": [
        (MessageKind.DATA, MessageFlag.END_STREAM, b"", b""),
        (MessageKind.DATA, 0, b"", b"x"),
    ],
    "no credit at all": [(MessageKind.CREDIT, 0, encode_head({"bytes": 0}), b"")],
    "negative credit": [(MessageKind.CREDIT, 0, encode_head({"bytes": -5}), b"")],
    "endless credit": [(MessageKind.CREDIT, 0, encode_head({"bytes": 1 << 62}), b"")],
    "credit in words": [(MessageKind.CREDIT, 0, encode_head({"bytes": "much"}), b"")],
    "an empty flood": [(MessageKind.DATA, 0, b"", b"")] * 16_385,
}


@pytest.mark.parametrize("cheat", CHEATS)
async def test_a_cheat_ends_the_session(open_hostile: Open, cheat: str) -> None:
    async with open_hostile(on_stream=deaf) as peer:
        await peer.send(MessageKind.REQUEST, 2, flags=MessageFlag.STREAM, head=OPEN)
        with trio.fail_after(60):
            try:
                for kind, flags, head, payload in CHEATS[cheat]:
                    await peer.send(kind, 2, flags=flags, head=head, payload=payload)
            except ChannelBrokenError:
                pass
            assert "closed the connection" not in await peer.session.wait_closed()


async def test_the_whole_window_is_no_cheat(open_hostile: Open) -> None:
    async with open_hostile(on_stream=deaf) as peer:
        await peer.send(MessageKind.REQUEST, 2, flags=MessageFlag.STREAM, head=OPEN)
        for _ in range(4):
            await peer.send(MessageKind.DATA, 2, payload=bytes((64 << 10) - 16))
        await peer.send(MessageKind.PING, payload=b"12345678")
        assert (await peer.channel.receive()).kind == MessageKind.PONG


async def test_too_many_streams_are_refused(open_hostile: Open) -> None:
    async with open_hostile(on_stream=deaf, limits=SessionLimits(max_streams=2)) as peer:
        for id_ in (2, 4, 6):
            await peer.send(MessageKind.REQUEST, id_, flags=MessageFlag.STREAM, head=OPEN)
        answer = await peer.channel.receive()
        assert answer.id == 6
        assert error_from_head(answer.head).code == "resource_exhausted"


async def test_a_message_without_end_is_refused(open_hostile: Open) -> None:
    async def listen(call: Call, stream: Stream) -> Reply:
        return Reply({"size": len(await stream.receive())})

    async with (
        open_hostile(on_stream=listen, limits=SessionLimits(max_message=1 << 20)) as peer,
        trio.open_nursery() as nursery,
    ):
        await peer.send(MessageKind.REQUEST, 2, flags=MessageFlag.STREAM, head=OPEN)

        async def speak() -> None:
            for _ in range(20):
                await peer.send(MessageKind.DATA, 2, flags=MessageFlag.MORE, payload=bytes(65_000))
                await trio.sleep(0.002)

        nursery.start_soon(speak)
        while (message := await peer.channel.receive()).kind == MessageKind.CREDIT:
            pass
        assert error_from_head(message.head).code == "resource_exhausted"
