"""Streams through a node: small chunks in a flood, one there and back at a time, and large ones.

The client sends on one task and receives on another; each guest gives every chunk back. The floor
is a bare stream of the same session to another process that echoes it, with no node and no guest.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio
from _node import connect, environ, run_node
from _report import Report, percentile

from spear_core.api import ArtifactUpload, InvokeRequest
from spear_core.rpc import Call, Reply, SocketChannel, Stream, open_session

SMALL, SMALL_COUNT = b"x" * 100, 20_000
LARGE, LARGE_COUNT = bytes(64_000), 3_000
ROUND_TRIPS = 1_000
AGENT = b"""
from collections.abc import AsyncIterator, Iterator

from spear_sdk import function

@function
def plain(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield from chunks

@function
async def echo(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
"""
WASM = b"""
(module
  (import "spear" "input_len" (func $len (result i32)))
  (import "spear" "input_read" (func $read (param i32 i32) (result i32)))
  (import "spear" "output_write" (func $write (param i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func (export "_start") (local $size i32)
    (loop $again
      (local.set $size (call $len))
      (if (local.get $size) (then
        (i32.store (i32.const 0) (local.get $size))
        (drop (call $read (i32.const 8) (i32.const 0)))
        (drop (call $write (i32.const 8) (local.get $size)))
        (br $again))))))
"""
FILES = {
    "agent": ("agent.py", AGENT),
    "command": ("cat.sh", b"#!/bin/sh\nexec cat\n"),
    "wasm": ("echo.wat", WASM),
}
GUESTS = (
    ("agent, async generator", "agent:echo"),
    ("agent, plain generator", "agent:plain"),
    ("command (cat)", "command"),
    ("wasm (input_read, output_write)", "wasm"),
)
Open = Callable[[], AbstractAsyncContextManager[Any]]


async def echo_stream(call: Call, stream: Stream) -> Reply:
    """The floor's other side."""
    try:
        while True:
            await stream.send(await stream.receive())
    except trio.EndOfChannel:
        return Reply()


async def serve_floor(descriptor: int) -> None:
    channel = SocketChannel(socket.socket(fileno=descriptor))
    async with open_session(channel, initiator=False, on_stream=echo_stream) as session:
        await session.wait_closed()


@asynccontextmanager
async def open_floor() -> AsyncIterator[Open]:
    """Streams to a process that echoes them."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, "--serve", str(theirs.fileno())]
    # It starts before anything is measured, so it may keep the loop waiting.
    with subprocess.Popen(  # noqa: ASYNC220
        command, pass_fds=[theirs.fileno()], env=environ()
    ) as process:
        theirs.close()
        async with open_session(SocketChannel(ours), initiator=True) as session:
            yield lambda: session.open_stream("echo")
        process.wait()


async def send_all(stream: Any, chunk: bytes, count: int) -> None:
    for _ in range(count):
        await stream.send(chunk)
    await stream.send_eof()


async def flood(open_stream: Open, chunk: bytes, count: int) -> float:
    """Seconds until as many bytes are back as were sent."""
    async with open_stream() as stream, trio.open_nursery() as nursery:
        await stream.send(b"x")
        await stream.receive()  # the guest runs
        started = time.perf_counter()
        nursery.start_soon(send_all, stream, chunk, count)
        left = len(chunk) * count
        while left:
            left -= len(await stream.receive())
        return time.perf_counter() - started


async def round_trips(open_stream: Open) -> list[float]:
    """Microseconds of each chunk, there and back."""
    times = []
    async with open_stream() as stream:
        for _ in range(ROUND_TRIPS):
            started = time.perf_counter()
            await stream.send(SMALL)
            await stream.receive()
            times.append((time.perf_counter() - started) * 1e6)
    return times[ROUND_TRIPS // 10 :]


async def figures(open_stream: Open) -> tuple[float, float, float]:
    """The best of three: chunks a second, MB a second; and the median round trip."""
    small = min([await flood(open_stream, SMALL, SMALL_COUNT) for _ in range(3)])
    large = min([await flood(open_stream, LARGE, LARGE_COUNT) for _ in range(3)])
    trips = percentile(await round_trips(open_stream), 50)
    return SMALL_COUNT / small, len(LARGE) * LARGE_COUNT / large / 1e6, trips


async def main(url: str, report: Report) -> None:
    async with open_floor() as floor:
        base = await figures(floor)
    report.row("bare stream: chunks of 100 bytes", base[0], "/s")
    report.row("bare stream: chunks of 64,000 bytes", base[1], "MB/s")
    report.row("bare stream: one there and back, p50", base[2], "us")
    async with connect(url) as node:
        for name, (filename, content) in FILES.items():
            await node.deploy(ArtifactUpload(name=name, filename=filename, content=content))
        for label, function in GUESTS:

            def open_stream(function: str = function) -> AbstractAsyncContextManager[Any]:
                return node.stream(InvokeRequest(function=function))

            rate, megabytes, trip = await figures(open_stream)
            report.row(f"{label}: 100 bytes", rate, "/s", floor=base[0])
            report.row("… chunks of 64,000 bytes", megabytes, "MB/s", floor=base[1])
            report.row("… one there and back, p50", trip, "us", floor=base[2])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        trio.run(serve_floor, int(sys.argv[2]))
    else:
        with run_node() as node, Report("streams through the local socket") as report:
            trio.run(main, node.paths.url, report)
