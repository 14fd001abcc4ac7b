"""Sessions between two processes: one request at a time, 64 in flight, and large payloads.

Floors, in this run: of one request, a blocking ping-pong on a raw Unix socket; of 64 in flight, a
trio echo on the same frames with no session; of a large payload, a raw blocking transfer.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio
from _report import Report, percentile

from spear_core.api import Message, MessageKind
from spear_core.errors import ChannelBrokenError
from spear_core.rpc import Call, Reply, Session, SocketChannel, open_session

SMALL = b"x" * 100
LARGE = bytes(16 << 20)
CALLS = 3_000
ROUNDS = 3
IN_FLIGHT = 64


# The other process: `python rpc_echo.py KIND FD`.


def raw_echo(sock: socket.socket) -> None:
    """Bytes come back as they arrive."""
    sock.setblocking(True)
    room = bytearray(1 << 18)
    view = memoryview(room)
    while count := sock.recv_into(room):
        sock.sendall(view[:count])


async def channel_echo(sock: socket.socket) -> None:
    """A frame comes back as another kind."""
    channel = SocketChannel(sock)
    with suppress(trio.EndOfChannel, ChannelBrokenError):
        while True:
            message = await channel.receive()
            answer = Message(MessageKind.RESPONSE, message.id, 0, b"\x80", message.payload)
            await channel.send(answer)


async def answer(call: Call) -> Reply:
    return Reply({}, call.payload)


async def session_echo(sock: socket.socket) -> None:
    """A request is answered by a handler in a task of its own."""
    async with open_session(SocketChannel(sock), initiator=False, handler=answer) as session:
        await session.wait_closed()


@contextmanager
def peer(kind: str) -> Iterator[socket.socket]:
    """A socket to another process that echoes."""
    near, far = socket.socketpair()
    command = [sys.executable, __file__, kind, str(far.fileno())]
    with far, subprocess.Popen(command, pass_fds=[far.fileno()]) as process:
        far.close()
        with near:
            if kind == "raw":  # wait until it runs
                near.sendall(b"!")
                near.recv(1)
            yield near
        process.wait()


# This process.


def raw_latency() -> float:
    """p50 in µs of a blocking ping-pong."""
    with peer("raw") as sock:
        times = []
        for _ in range(CALLS):
            started = time.perf_counter()
            sock.sendall(SMALL)
            sock.recv(len(SMALL))
            times.append(time.perf_counter() - started)
    return percentile(times, 50) * 1e6


def raw_transfer() -> float:
    """ms for a large payload there and back, blocking, half a buffer at a time."""
    with peer("raw") as sock:
        best = 1e9
        view, room = memoryview(LARGE), bytearray(1 << 17)
        for _ in range(3):
            started = time.perf_counter()
            for start in range(0, len(LARGE), len(room)):
                sock.sendall(view[start : start + len(room)])
                got = 0
                while got < len(room):
                    got += sock.recv_into(memoryview(room)[got:])
            best = min(best, time.perf_counter() - started)
    return best * 1e3


async def bare_throughput() -> float:
    """Frames per second with 64 in flight and no session."""
    with peer("channel") as sock:
        channel = SocketChannel(sock)
        message = Message(MessageKind.REQUEST, 2, 0, b"\x80", SMALL)
        await channel.send(message)
        await channel.receive()
        started = time.perf_counter()
        for _ in range(IN_FLIGHT):
            await channel.send(message)
        for _ in range(CALLS * 2):
            await channel.receive()
            await channel.send(message)
        rate = CALLS * 2 / (time.perf_counter() - started)
        await channel.aclose()
        return rate


async def latency(session: Session) -> float:
    """p50 in µs of one request at a time."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await session.request("echo", {}, SMALL)
        times.append(time.perf_counter() - started)
    return percentile(times, 50) * 1e6


async def throughput(session: Session) -> float:
    """Requests per second with many in flight."""
    each = CALLS * 4 // IN_FLIGHT

    async def caller() -> None:
        for _ in range(each):
            await session.request("echo", {}, SMALL)

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(caller)
    return each * IN_FLIGHT / (time.perf_counter() - started)


async def transfer(session: Session) -> float:
    """ms for a large payload there and back."""
    best = 1e9
    for _ in range(3):
        started = time.perf_counter()
        reply = await session.request("echo", {}, LARGE)
        best = min(best, time.perf_counter() - started)
        assert len(reply.payload) == len(LARGE)
    return best * 1e3


async def main() -> None:
    singles, manies, floors, large = [], [], [], []
    for _ in range(ROUNDS):
        floors.append((raw_latency(), await bare_throughput(), raw_transfer()))
        with peer("session") as sock:
            async with open_session(SocketChannel(sock), initiator=True) as session:
                await session.request("echo")
                singles.append(await latency(session))
                manies.append(await throughput(session))
                large.append(await transfer(session))
    with Report("rpc echo: a session over a Unix socket, peer in another process") as report:
        report.row(
            "one request, p50, 100 B",
            min(singles),
            "us",
            floor=min(floor[0] for floor in floors),
            target="<= 130",
        )
        report.row(
            "64 in flight, 100 B (floor: bare trio echo, no session)",
            max(manies),
            "/s",
            floor=max(floor[1] for floor in floors),
            target=">= 50,000",
        )
        report.row(
            "16 MiB there and back", min(large), "ms", floor=min(floor[2] for floor in floors)
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        inherited = socket.socket(fileno=int(sys.argv[2]))
        if sys.argv[1] == "raw":
            raw_echo(inherited)
        elif sys.argv[1] == "channel":
            trio.run(channel_echo, inherited)
        else:
            trio.run(session_echo, inherited)
    else:
        trio.run(main)
