"""Streams within one process keep the promises of those over a channel."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from spear_core.api import MAX_CHUNK, DuplexStream
from spear_core.errors import ChannelClosedError, InstanceLostError, ResourceExhaustedError
from spear_core.rpc import FarEnd, open_local_stream


async def echo(far: FarEnd) -> str:
    count = 0
    try:
        while True:
            await far.send(await far.receive())
            count += 1
    except trio.EndOfChannel:
        return f"{count} chunks"


async def read_all(stream: DuplexStream[str]) -> list[bytes]:
    chunks = []
    try:
        while True:
            chunks.append(await stream.receive())
    except trio.EndOfChannel:
        return chunks


async def test_chunks_both_ways_and_a_result() -> None:
    async with open_local_stream(echo) as stream:
        for chunk in (b"one", b"", bytes(1 << 20)):
            await stream.send(chunk)
            assert await stream.receive() == chunk
        await stream.send_eof()
        await stream.send_eof()
        assert await read_all(stream) == []
        assert await stream.result() == await stream.result() == "3 chunks"
        with pytest.raises(ChannelClosedError):
            await stream.send(b"too late")


async def test_the_senders_buffer_is_its_own() -> None:
    buffer = bytearray(b"before")
    async with open_local_stream(echo) as stream:
        await stream.send(buffer)
        buffer[:] = b"after!"
        assert await stream.receive() == b"before"


async def test_a_slow_reader_stops_both_sides(autojump_clock: trio.testing.MockClock) -> None:
    sent = 0
    async with open_local_stream(echo) as stream:
        with trio.move_on_after(0.2):
            while True:
                await stream.send(bytes(10_000))
                sent += 1
        assert 2 * 26 <= sent <= 2 * 28  # a window of 256 KiB in each direction
        for _ in range(sent):
            await stream.receive()
        await stream.send(b"on")
        assert await stream.receive() == b"on"


async def test_a_cancelled_send_is_whole_or_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def wait(far: FarEnd) -> str:
        await go_on.wait()
        return str(len(await _count(far)))

    async def _count(far: FarEnd) -> list[bytes]:
        chunks = []
        try:
            while True:
                chunks.append(await far.receive())
        except trio.EndOfChannel:
            return chunks

    go_on = trio.Event()
    sent = 0
    async with open_local_stream(wait) as stream:
        for _ in range(100):
            with trio.move_on_after(0.001):
                await stream.send(bytes(10_000))
                sent += 1
        go_on.set()
        await stream.send_eof()
        assert await stream.result() == str(sent)


async def test_what_the_far_end_raises_comes_after_its_chunks() -> None:
    async def fail(far: FarEnd) -> str:
        await far.send(b"first")
        raise InstanceLostError("it was lost")

    async with open_local_stream(fail) as stream:
        await trio.testing.wait_all_tasks_blocked()
        assert await stream.receive() == b"first"
        for _ in range(2):
            with pytest.raises(InstanceLostError, match="it was lost"):
                await stream.receive()
        with pytest.raises(InstanceLostError):
            await stream.result()
        with pytest.raises(ChannelClosedError):
            await stream.send(b"x")


async def test_either_half_may_end_first() -> None:
    async def speak_then_listen(far: FarEnd) -> str:
        await far.send(b"hello")
        far.send_eof()
        return (await far.receive()).decode()

    async def deaf(far: FarEnd) -> str:
        far.refuse_input()
        await far.send(b"still here")
        return "done"

    async with open_local_stream(speak_then_listen) as stream:
        assert await read_all(stream) == [b"hello"]
        await stream.send(b"bye")
        assert await stream.result() == "bye"
    async with open_local_stream(deaf) as stream:
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ChannelClosedError, match="no more input"):
            await stream.send(b"x")
        assert await read_all(stream) == [b"still here"]


async def test_leaving_cancels_and_waits() -> None:
    ended = []

    async def stay(far: FarEnd) -> str:
        try:
            await far.receive()
        finally:
            ended.append(True)
        return ""

    async with open_local_stream(stay):
        await trio.testing.wait_all_tasks_blocked()
    assert ended == [True]
    with pytest.raises(ValueError, match="as it is"):
        async with open_local_stream(stay):
            raise ValueError("as it is")
    async with open_local_stream(stay) as stream:
        await stream.aclose()
        assert len(ended) >= 2
        with pytest.raises(ChannelClosedError):
            await stream.result()


async def test_a_chunk_has_a_limit_in_both_directions() -> None:
    async def boast(far: FarEnd) -> str:
        await far.send(bytes(MAX_CHUNK + 1))
        return ""

    async with open_local_stream(boast) as stream:
        with pytest.raises(ResourceExhaustedError, match=str(MAX_CHUNK)):
            await stream.send(bytes(MAX_CHUNK + 1))
        with pytest.raises(ResourceExhaustedError):
            await stream.result()
