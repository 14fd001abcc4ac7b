"""The whole way of a call: client library, local socket, node, guest and back; 1 KiB each way.

Floors, in this run: for wasm a bare trio echo in another process on the same framing and the same
kind of socket; for the agent that echo plus a warm worker on a raw socket, which is what the two
hops cost with no node between. Beside them: a noop in a `ProcessPoolExecutor`, and the same wasm
call through wasmtime's own wrapper in this process.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import trio
import wasmtime
from _node import AGENT, run_node
from _report import Report, percentile
from _wasm import ECHO

from spear_core.api import ArtifactUpload, InvokeRequest, Message, MessageKind, NodeApi
from spear_core.rpc import Session, open_session
from spear_core.rpc.socket_channel import SocketChannel

PAYLOAD = b"x" * 1024
CALLS = 3_000
ROUNDS = 3
IN_FLIGHT = 64
Call = Callable[[], Awaitable[object]]


async def latencies(call: Call) -> list[float]:
    """Milliseconds of each of some calls, one after the other."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await call()
        times.append((time.perf_counter() - started) * 1e3)
    return times


async def throughput(call: Call) -> float:
    """Calls per second with many in flight."""

    async def caller() -> None:
        for _ in range(CALLS * 2 // IN_FLIGHT):
            await call()

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(caller)
    return CALLS * 2 / (time.perf_counter() - started)


def p50(rounds: list[list[float]]) -> float:
    """The median of the best round."""
    return min(percentile(times, 50) for times in rounds)


# The floors run in a process of their own: `python invoke_path.py SERVER SOCKET`.


async def echo_server(path: str) -> None:
    """A REQUEST's payload comes back as the RESPONSE's."""
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(path)
    listener.listen()
    connection, _ = await listener.accept()
    plain = socket.socket(fileno=connection.detach())
    plain.setblocking(False)
    channel = SocketChannel(plain)
    while True:
        try:
            message = await channel.receive()
        except trio.EndOfChannel:
            return
        if message.kind == MessageKind.REQUEST:
            await channel.send(
                Message(
                    kind=MessageKind.RESPONSE, id=message.id, head=b"\x80", payload=message.payload
                )
            )


def raw_worker(path: str) -> None:
    """A warm worker: what comes in goes out."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        connection, _ = listener.accept()
        while data := connection.recv(65536):
            connection.sendall(data)


@contextmanager
def server(kind: str) -> Iterator[str]:
    """A floor's process; yields the path of its socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        process = subprocess.Popen([sys.executable, __file__, kind, path])
        try:
            while not Path(path).exists():
                time.sleep(0.01)
            time.sleep(0.05)
            yield path
        finally:
            process.kill()
            process.wait()


async def bare_echo() -> tuple[float, float]:
    """p50 in ms and calls per second of the bare trio echo."""
    with server("echo") as path:
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(path)
        plain.setblocking(False)
        async with open_session(SocketChannel(plain), initiator=True) as session:

            async def call(session: Session = session) -> None:
                await session.request("echo", {}, PAYLOAD)

            rounds = [await latencies(call) for _ in range(ROUNDS)]
            rates = [await throughput(call) for _ in range(ROUNDS)]
    return p50(rounds), max(rates)


def warm_worker() -> float:
    """p50 in ms of a round trip to a worker on a raw socket."""
    rounds = []
    with server("worker") as path, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        for _ in range(ROUNDS):
            times = []
            for _ in range(CALLS):
                started = time.perf_counter()
                connection.sendall(PAYLOAD)
                left = len(PAYLOAD)
                while left:
                    left -= len(connection.recv(65536))
                times.append((time.perf_counter() - started) * 1e3)
            rounds.append(times)
    return p50(rounds)


def noop(data: bytes) -> bytes:
    """For the process pool."""
    return data


def process_pool() -> float:
    """p50 in ms of a noop in a warm process pool."""
    with ProcessPoolExecutor(max_workers=1) as pool:
        pool.submit(noop, PAYLOAD).result()
        times = []
        for _ in range(CALLS):
            started = time.perf_counter()
            pool.submit(noop, PAYLOAD).result()
            times.append((time.perf_counter() - started) * 1e3)
    return percentile(times, 50)


def wasmtime_wrapper() -> float:
    """p50 in ms of store, instance and call through wasmtime's Python package."""
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, wasmtime.wat2wasm(ECHO))
    linker = wasmtime.Linker(engine)
    times = []
    for _ in range(CALLS // 2):
        started = time.perf_counter()
        store = wasmtime.Store(engine)
        exports = linker.instantiate(store, module).exports(store)
        memory, alloc, handle = exports["memory"], exports["spear_alloc"], exports["handle"]
        assert isinstance(memory, wasmtime.Memory)
        assert isinstance(alloc, wasmtime.Func)
        assert isinstance(handle, wasmtime.Func)
        at = alloc(store, len(PAYLOAD))
        memory.write(store, PAYLOAD, at)
        packed = handle(store, at, len(PAYLOAD))
        memory.read(store, packed >> 32, (packed >> 32) + len(PAYLOAD))
        times.append((time.perf_counter() - started) * 1e3)
    return percentile(times, 50)


async def through_the_node(api: NodeApi, name: str) -> tuple[list[list[float]], float]:
    """Rounds of latencies, and calls per second, of a deployed echo."""
    request = InvokeRequest(function=name, payload=PAYLOAD)

    async def call() -> None:
        response = await api.invoke(request)
        assert response.task.result is not None, response.message
        assert response.task.result.output == PAYLOAD, response.message

    await call()
    rounds = [await latencies(call) for _ in range(ROUNDS)]
    rates = [await throughput(call) for _ in range(ROUNDS)]
    return rounds, max(rates)


async def measure(report: Report) -> None:
    echo_ms, echo_rate = await bare_echo()
    worker_ms = warm_worker()
    report.row("floor: bare trio echo on our framing, p50", echo_ms, "ms")
    report.row(f"floor: the same, {IN_FLIGHT} in flight", echo_rate, "/s")
    report.row("floor: warm worker on a raw socket, p50", worker_ms, "ms")
    report.row("beside: ProcessPoolExecutor noop, p50", process_pool(), "ms")
    report.row("beside: wasmtime's wrapper in process, p50", wasmtime_wrapper(), "ms")
    with run_node() as node:
        async with node.connect() as api:
            await api.deploy(ArtifactUpload(name="wasm", filename="echo.wat", content=ECHO))
            await api.deploy(ArtifactUpload(name="agent", filename="echo.py", content=AGENT))
            rounds, rate = await through_the_node(api, "wasm")
            report.row("wasm, fresh instance per call, p50", p50(rounds), "ms", floor=echo_ms,
                       target="<= 0.4")  # fmt: skip
            report.row("… p99", min(percentile(t, 99) for t in rounds), "ms")
            report.row(f"… {IN_FLIGHT} in flight", rate, "/s", floor=echo_rate, target=">= 5,000")
            rounds, rate = await through_the_node(api, "agent")
            report.row("warm Python agent, p50", p50(rounds), "ms", floor=echo_ms + worker_ms,
                       target="<= 0.6")  # fmt: skip
            report.row("… p99", min(percentile(t, 99) for t in rounds), "ms")
            report.row(f"… {IN_FLIGHT} in flight", rate, "/s", floor=echo_rate)


def main() -> None:
    if sys.argv[1:2] == ["echo"]:
        trio.run(echo_server, sys.argv[2])
    elif sys.argv[1:2] == ["worker"]:
        raw_worker(sys.argv[2])
    else:
        with Report("the invoke path: client process, local socket, node, guest") as report:
            trio.run(measure, report)


if __name__ == "__main__":
    main()
