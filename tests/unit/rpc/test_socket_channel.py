"""What a socket channel does beyond the contract of channels, on real sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from spear_core.api import Message
from spear_core.errors import ChannelBrokenError, ProtocolError
from spear_core.rpc import SocketChannel
from spear_core.rpc.framing import FrameParser, encode_header

LARGE = bytes(range(256)) * 65536


def frame(message: Message) -> bytes:
    return encode_header(message) + message.head + message.payload


@pytest.fixture
def ends() -> Iterator[tuple[SocketChannel, socket.socket]]:
    """A channel and the bare socket at its other end."""
    near, far = socket.socketpair()
    far.setblocking(False)
    with near, far:
        yield SocketChannel(near), far


Ends = tuple[SocketChannel, socket.socket]


async def read_all(far: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        await trio.lowlevel.wait_readable(far)
        parts.append(far.recv(min(size, 1 << 20)))
        size -= len(parts[-1])
    return b"".join(parts)


async def test_one_byte_at_a_time(ends: Ends) -> None:
    channel, far = ends
    sent = Message(3, 9, 1, b"head", b"payload")

    async def drip() -> None:
        for byte in frame(sent):
            far.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        assert await channel.receive() == sent


async def test_sixteen_mebibytes_both_ways_at_once() -> None:
    near, far = map(SocketChannel, socket.socketpair())
    got: list[Message] = []

    async def receive(channel: SocketChannel) -> None:
        got.append(await channel.receive())

    async with near, far, trio.open_nursery() as nursery:
        for one, other in ((near, far), (far, near)):
            nursery.start_soon(one.send, Message(5, 1, 0, b"", LARGE))
            nursery.start_soon(receive, other)
    assert [message.payload == LARGE for message in got] == [True, True]


async def test_a_peer_that_dies_in_mid_frame() -> None:
    for cut in (1, 15, 16, 18, len(frame(Message(3, 1, 0, b"abc", b"def"))) - 1):
        near, far = socket.socketpair()
        async with SocketChannel(near) as channel:
            far.sendall(frame(Message(3, 1, 0, b"abc", b"def")) * 2)
            far.send(frame(Message(3, 1, 0, b"abc", b"def"))[:cut])
            far.close()
            for _ in range(2):
                assert (await channel.receive()).payload == b"def"
            for _ in range(2):
                with pytest.raises(ChannelBrokenError, match="middle of a message"):
                    await channel.receive()
            with pytest.raises(ChannelBrokenError):
                await channel.send(Message(3))


async def test_a_peer_that_dies_in_mid_large_frame(ends: Ends) -> None:
    channel, far = ends
    far.setblocking(True)
    far.sendall(frame(Message(3, 1, 0, b"", LARGE))[:100_000])
    far.close()
    with pytest.raises(ChannelBrokenError, match="middle of a message"):
        await channel.receive()


async def test_the_end_stays_the_end(ends: Ends) -> None:
    channel, far = ends
    far.close()
    for _ in range(3):
        with pytest.raises(trio.EndOfChannel):
            await channel.receive()
    assert not channel.is_connected


async def test_a_hostile_length_breaks_the_channel(ends: Ends) -> None:
    channel, far = ends
    far.send(frame(Message(3, 1, 0, b"", b"good")) + struct.pack(">IBBHQ", 2**32 - 1, 3, 0, 0, 1))
    assert (await channel.receive()).payload == b"good"
    for _ in range(2):
        with pytest.raises(ProtocolError, match="4294967295"):
            await channel.receive()
    assert not channel.is_connected
    with pytest.raises(ChannelBrokenError, match="protocol"):
        await channel.send(Message(3))


async def test_a_cancelled_half_sent_frame_is_finished(ends: Ends) -> None:
    channel, far = ends
    payload = bytearray(LARGE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.send, Message(5, 1, 0, b"first", payload))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert nursery.cancel_scope.cancelled_caught
    payload[:] = bytes(len(payload))  # the caller may do what it likes with it now
    parser = FrameParser()
    got: list[Message] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.send, Message(5, 2, 0, b"second", b"x"))
        while len(got) < 2:
            await trio.lowlevel.wait_readable(far)
            got += parser.feed(far.recv(1 << 20))
    assert [(message.id, message.head) for message in got] == [(1, b"first"), (2, b"second")]
    assert got[0].payload == LARGE


async def test_a_send_cancelled_before_its_first_byte_sends_nothing(ends: Ends) -> None:
    channel, far = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.send, Message(5, 1, 0, b"", bytes(1 << 20)))
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.move_on_after(0.01):
            await channel.send(Message(5, 2))
        read = await read_all(far, 16 + (1 << 20))
        assert len(FrameParser().feed(read)) == 1
    await channel.send(Message(5, 3))
    assert [m.id for m in FrameParser().feed(await read_all(far, 16))] == [3]


async def test_cancelled_send_to_a_peer_that_never_reads_leaves_nothing(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    channel, _far = ends
    with trio.move_on_after(0.01):
        await channel.send(Message(5, 1, 0, b"", LARGE))
    started = trio.current_time()
    await channel.aclose()
    assert trio.current_time() - started < 3
    assert channel.socket.fileno() == -1


async def test_backpressure_does_not_grow_with_time(
    ends: Ends, autojump_clock: trio.testing.MockClock
) -> None:
    channel, _far = ends
    sent = 0
    with trio.move_on_after(0.05):
        while True:
            await channel.send(Message(5, 1, 0, b"", bytes(10_000)))
            sent += 1
    assert 10 < sent < 100


async def test_a_busy_pair_lets_others_run() -> None:
    near, far = map(SocketChannel, socket.socketpair())
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(640):
            await near.send(Message(5))
            await far.receive()
        nursery.cancel_scope.cancel()
    assert turns >= 20
