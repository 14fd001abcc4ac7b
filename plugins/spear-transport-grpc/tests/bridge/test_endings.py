"""Stopping in the middle of work, peers that vanish or talk nonsense, and nothing left behind."""

from __future__ import annotations

import gc
import socket
import sys
import threading

import psutil
import pytest
import trio

from spear_core.testing import Resources
from spear_transport_grpc._bridge import (
    Port,
    RpcError,
    Server,
    ServerCall,
    StatusCode,
    Streaming,
    Unary,
    open_channel,
    open_server,
)

STREAMER = """
import sys, trio
from spear_transport_grpc._bridge import open_channel
async def main():
    async with open_channel(sys.argv[1]) as channel, channel.open_call(sys.argv[2]) as call:
        await call.receive()
        await trio.sleep_forever()
trio.run(main)
"""


async def test_stopping_lets_a_call_finish_within_the_grace(opened) -> None:
    got: list[bytes] = []
    async with opened(grace_s=60) as pair, pair.channel.open_call("/t/EchoStream") as call:
        await call.send(b"first")
        assert await call.receive() == b"first"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.server.stop, 60)
            await trio.sleep(0.05)
            await call.send(b"during")
            message = await call.receive()
            assert message is not None
            got.append(message)
            with pytest.raises(RpcError) as caught:
                await pair.channel.call("/t/Echo", b"new")
            assert caught.value.code is StatusCode.UNAVAILABLE
            await call.send_eof()
            assert await call.receive() is None
    assert got == [b"during"]


async def test_stopping_ends_a_stream_after_the_grace(opened) -> None:
    async with opened(grace_s=0.1) as pair:
        async with pair.channel.open_call("/t/SleepStream") as call:
            await pair.seen.wait("started", 1)
            with trio.fail_after(60):
                await pair.server.stop(0.1)
                with pytest.raises(RpcError):
                    await call.receive()
        assert pair.seen.cancelled == 1


async def test_a_cancelled_server_stops_at_once(opened) -> None:
    with trio.fail_after(60), trio.CancelScope() as scope:
        async with opened(grace_s=1000) as pair, pair.channel.open_call("/t/SleepStream"):
            await pair.seen.wait("started", 1)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert pair.seen.cancelled == 1


@pytest.mark.parametrize("last", ["receive", "send"])
async def test_a_handler_may_outlive_the_server(tmp_path, last: str) -> None:
    """It waits for a thread, say, and goes on with its call when everything is over."""
    began, over, ended = trio.Event(), trio.Event(), trio.Event()

    async def slow(call: ServerCall) -> None:
        with trio.CancelScope(shield=True):
            began.set()
            await over.wait()
            with trio.move_on_after(0.01):
                await (call.receive() if last == "receive" else call.offer(b"late"))
        ended.set()

    async def tell(server: Server) -> None:
        await server._poller._over.wait()
        over.set()

    port = Port(address=f"unix:{tmp_path}/s")
    async with (
        trio.open_nursery() as nursery,
        open_channel(port.address) as channel,
        open_server((port,), {"/t/Slow": Streaming(slow)}, grace_s=0) as server,
        channel.open_call("/t/Slow"),
    ):
        nursery.start_soon(tell, server)
        await began.wait()
    assert ended.is_set()


@pytest.mark.parametrize("method", ["/t/SleepStream", "/t/Flood"])
async def test_a_client_that_is_killed_cancels_its_handler(opened, method: str) -> None:
    async with opened() as pair:
        command = [sys.executable, "-c", STREAMER, pair.target, method]
        process = await trio.lowlevel.open_process(command)
        await pair.seen.wait("started" if method == "/t/SleepStream" else "sent", 1)
        process.kill()
        await process.wait()
        await pair.seen.wait("cancelled", 1)


async def test_a_server_that_is_gone_is_unavailable(tmp_path) -> None:
    target = f"unix:{tmp_path}/s"
    async with open_channel(target) as channel:
        async with open_server((Port(address=target),), {}, grace_s=0):
            with pytest.raises(RpcError) as caught:
                await channel.call("/t/Echo", b"")
            assert caught.value.code is StatusCode.UNIMPLEMENTED
        with pytest.raises(RpcError) as caught:
            await channel.call("/t/Echo", b"")
        assert caught.value.code is StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 300,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + b"\0\0\5\1\5\0\0\0\1hello",
    ],
)
async def test_a_peer_that_talks_nonsense_hurts_nobody(opened, nonsense: bytes) -> None:
    async with opened() as pair:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(pair.target.removeprefix("unix:"))
            peer.sendall(nonsense)
            assert await pair.channel.call("/t/Echo", b"fine") == b"fine"


async def test_opening_and_closing_leaves_nothing(opened) -> None:
    async def once() -> None:
        async with opened() as pair:
            await pair.channel.call("/t/Echo", b"x")
            async with pair.channel.open_call("/t/EchoStream") as call:
                await call.send(b"x")

    for _ in range(3):
        await once()
    before = Resources.now()
    for _ in range(20):
        await once()
    assert await Resources.settled(before, seconds=30) == []
    assert not [t.name for t in threading.enumerate() if t.name == "spear-grpc"]


async def test_calls_go_without_the_garbage_collector(opened) -> None:
    """C-core counts calls that Python still refers to, and refuses more than its limit."""
    gc.collect()
    gc.disable()
    try:
        async with opened(options={"grpc.max_concurrent_streams": 20}) as pair:
            for number in range(100):
                await pair.channel.call("/t/Echo", b"x")
                with pytest.raises(RpcError, match="nothing here"):
                    await pair.channel.call("/t/Fail", b"x")
                async with pair.channel.open_call("/t/EchoStream") as call:
                    await call.send(b"%d" % number)
                    assert await call.receive() == b"%d" % number
            kinds = ("ServerCall", "ClientCall", "Messages")
            left = [o for o in gc.get_objects() if type(o).__name__ in kinds]
            assert len(left) < 10
    finally:
        gc.enable()


@pytest.mark.slow
async def test_ten_thousand_calls_leak_nothing(opened) -> None:
    async def some(count: int) -> None:
        for number in range(count):
            if number % 4 == 0:
                with trio.move_on_after(0):
                    await pair.channel.call("/t/Sleep", b"x")
                with trio.move_on_after(0.001):
                    await pair.channel.call("/t/Sleep", b"x")
            elif number % 4 == 1:
                async with pair.channel.open_call("/t/EchoStream") as call:
                    await call.send(b"x" * 1000)
                    await call.receive()
            elif number % 4 == 2:
                with pytest.raises(RpcError):
                    await pair.channel.call("/t/Fail", b"x")
            else:
                await pair.channel.call("/t/Echo", b"x" * 1000)

    async def round_of(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(some, count // 10)

    process = psutil.Process()
    async with opened() as pair:
        await round_of(3_000)
        gc.collect()
        before, memory = Resources.now(), process.memory_info().rss
        await round_of(10_000)
        assert await Resources.settled(before, seconds=30) == []
        gc.collect()
        grown = process.memory_info().rss - memory
        assert grown < 6 << 20, f"{grown} bytes more after 10,000 calls"
        assert pair.seen.started == pair.seen.cancelled


async def test_a_handler_may_end_while_another_task_sends(tmp_path) -> None:
    """The other one is told that the call is over, and the server goes on."""
    told: list[bool] = []
    stuck, ended = trio.Event(), trio.Event()

    async def flood(call: ServerCall) -> None:
        taken = True
        while taken:
            with trio.move_on_after(0.3) as patience:
                taken = await call.offer(bytes(64 << 10))
            if patience.cancelled_caught:
                stuck.set()
                taken = await call.offer(b"nobody reads")
        told.append(taken)
        ended.set()

    async def leave(call: ServerCall) -> None:
        senders.start_soon(flood, call)
        await stuck.wait()

    async def echo(request: bytes, call: ServerCall) -> bytes:
        return request

    methods = {"/t/Leave": Streaming(leave), "/t/Echo": Unary(echo)}
    port = Port(address=f"unix:{tmp_path}/s")
    with trio.fail_after(60):
        async with (
            trio.open_nursery() as senders,
            open_server((port,), methods, grace_s=1),
            open_channel(port.address) as channel,
        ):
            async with channel.open_call("/t/Leave") as call:
                await call.receive()
                await ended.wait()
            assert told == [False]
            assert await channel.call("/t/Echo", b"goes on") == b"goes on"
