"""Calls between trio tasks: statuses, deadlines, cancellation, order, limits."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.lowlevel

from spear_transport_grpc._bridge import Port, RpcError, StatusCode, open_server

BIG = {"grpc.max_receive_message_length": 1 << 20, "grpc.max_send_message_length": 1 << 20}


async def test_a_unary_call_there_and_back(opened) -> None:
    async with opened() as pair:
        for message in (b"", b"x", bytes(300_000)):
            assert await pair.channel.call("/t/Echo", message) == message


async def test_what_a_handler_raises_is_the_status(opened) -> None:
    async with opened() as pair:
        with pytest.raises(RpcError, match="nothing here: ü") as caught:
            await pair.channel.call("/t/Fail", b"")
        assert caught.value.code is StatusCode.NOT_FOUND
        assert ("why-bin", b"\0\1") in caught.value.trailing


async def test_a_handlers_bug_is_a_status_and_a_line_in_the_log(opened, caplog) -> None:
    async with opened() as pair:
        with caplog.at_level(logging.ERROR), pytest.raises(RpcError, match="a bug") as caught:
            await pair.channel.call("/t/Explode", b"")
        assert caught.value.code is StatusCode.UNKNOWN
        assert "LookupError" in caplog.text
        assert await pair.channel.call("/t/Echo", b"goes on") == b"goes on"


async def test_an_unknown_method_is_unimplemented(opened) -> None:
    async with opened() as pair:
        with pytest.raises(RpcError) as caught:
            await pair.channel.call("/t/Nothing", b"")
        assert caught.value.code is StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["/t/Sleep", "/t/SleepStream"])
async def test_a_client_that_cancels_cancels_the_handler(opened, method: str) -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        nursery.start_soon(pair.channel.call, method, b"")
        await pair.seen.wait("started", 1)
        nursery.cancel_scope.cancel()
    # the server was stopped only after the cancellation, which did not need the grace period
    assert pair.seen.cancelled == 1


async def test_many_calls_cancelled_at_once(opened) -> None:
    async with opened() as pair:
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(pair.channel.call, "/t/Sleep", b"")
            await pair.seen.wait("started", 300)
            nursery.cancel_scope.cancel()
        await pair.seen.wait("cancelled", 300)
        assert await pair.channel.call("/t/Echo", b"still") == b"still"


async def test_the_deadline_travels(opened) -> None:
    async with opened() as pair:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.channel.call, "/t/Sleep", b"")
                await pair.seen.wait("started", 1)
                nursery.cancel_scope.cancel()
        # gRPC's core sends what is left in tenths of a second, rounded up; and between two looks at
        # clocks, the machine may pause.
        assert 30 < pair.seen.remaining < 90


async def test_both_sides_keep_the_deadline(opened) -> None:
    async with opened() as pair:
        seconds = 0.2
        while not pair.seen.started:  # longer, should it be over before the call has arrived
            seconds *= 2
            with trio.move_on_after(seconds) as scope:
                await pair.channel.call("/t/Sleep", b"")
            assert scope.cancelled_caught
        assert pair.seen.remaining < seconds + 30
        await pair.seen.wait("cancelled", pair.seen.started)


async def test_without_a_deadline_the_handler_has_none(opened) -> None:
    async with opened() as pair, trio.open_nursery() as nursery:
        nursery.start_soon(pair.channel.call, "/t/Sleep", b"")
        await pair.seen.wait("started", 1)
        assert pair.seen.remaining == float("inf")
        nursery.cancel_scope.cancel()


async def test_messages_of_a_stream_in_order_both_ways(opened) -> None:
    messages = [b"%d" % number * (number % 50) for number in range(500)]

    async with opened() as pair, pair.channel.open_call("/t/EchoStream") as call:

        async def send() -> None:
            for message in messages:
                await call.send(message)
            await call.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            got = []
            while (message := await call.receive()) is not None:
                got.append(message)
        assert got == messages
        await call.wait_status()


async def test_a_cancelled_receive_loses_nothing(opened) -> None:
    messages = [b"%d" % number for number in range(300)]
    async with opened() as pair, pair.channel.open_call("/t/Patient") as call:
        for message in messages:
            await call.send(message)
            await trio.lowlevel.checkpoint()
        await call.send_eof()
        assert await call.receive() is None
        assert pair.seen.received == messages


async def test_a_clients_cancelled_receive_loses_nothing(opened) -> None:
    async with opened() as pair, pair.channel.open_call("/t/EchoStream") as call:
        for number in range(100):
            with trio.move_on_after(0):
                await call.receive()
                pytest.fail("nothing was sent yet")
            await call.send(b"%d" % number)
            assert await call.receive() == b"%d" % number


async def test_a_reader_that_does_not_read_stops_the_handler(opened) -> None:
    async with opened() as pair, pair.channel.open_call("/t/Flood") as call:
        await call.receive()
        sent = -1
        while sent != pair.seen.sent:
            sent = pair.seen.sent
            await trio.sleep(0.1)
        assert sent < 400  # 25 MiB; nothing stops without flow control
        for _ in range(sent + 10):
            await call.receive()
        assert pair.seen.sent > sent


async def test_a_message_over_the_limit_ends_its_call_only(opened) -> None:
    async with opened(options=BIG) as pair:
        with pytest.raises(RpcError) as caught:
            await pair.channel.call("/t/Echo", bytes((1 << 20) + 1))
        assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED
        assert len(await pair.channel.call("/t/Echo", bytes(1 << 20))) == 1 << 20


async def test_one_task_receives_at_a_time(opened) -> None:
    async with (
        opened() as pair,
        pair.channel.open_call("/t/EchoStream") as call,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(call.receive)
        await trio.sleep(0.01)
        with pytest.raises(trio.BusyResourceError):
            await call.receive()
        nursery.cancel_scope.cancel()


async def test_calling_nobody_is_unavailable(opened, tmp_path) -> None:
    from spear_transport_grpc._bridge import open_channel

    async with open_channel(f"unix:{tmp_path}/nobody") as channel:
        with pytest.raises(RpcError) as caught:
            await channel.call("/t/Echo", b"")
        assert caught.value.code is StatusCode.UNAVAILABLE


async def test_a_port_that_is_taken_is_an_error() -> None:
    async with open_server((Port(address="127.0.0.1:0"),), {}, grace_s=0) as server:
        with pytest.raises(OSError, match="cannot listen"):
            async with open_server((Port(address=f"127.0.0.1:{server.ports[0]}"),), {}, grace_s=0):
                pytest.fail("two servers on one port")
