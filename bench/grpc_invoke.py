"""Calling a function over gRPC: a client process, the front door `grpc`, a wasm guest.

Floor: an echo service on the same gRPC stack (C-core under trio, no protobuf, no node) in a process
of its own, called by the same client with messages of the same size. Beside it the local socket,
the same function. All three take turns, so that a busy moment of the machine hits all alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from _node import NodeProcess, environ, run_node
from _report import Report, percentile
from _wasm import ECHO

from spear_core.api import ArtifactUpload, InvokeRequest
from spear_transport_grpc import plugin
from spear_transport_grpc._bridge import Port, ServerCall, Unary, open_channel, open_server
from spear_transport_grpc._protos.spear.v1 import function_pb2

ROUNDS = 7
ONE_S = 0.6
MANY_S = 1.2
CALLERS = 64
PAYLOAD = b"x" * 100
INVOKE = "/spear.v1.FunctionService/InvokeFunction"

Call = Callable[[], Awaitable[object]]


async def echo(data: bytes, call: ServerCall) -> bytes:
    return data


async def serve_echo(path: str) -> None:
    port = Port(address=f"unix:{path}")
    async with open_server((port,), {"/bench/Echo": Unary(echo)}, grace_s=0):
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)


class Subject:
    """One thing to call, and what was measured."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.times: list[float] = []
        self.rates: list[float] = []

    async def alone(self, seconds: float) -> None:
        """One call after the other."""
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            await self._call()
            self.times.append((time.perf_counter() - started) * 1e6)

    async def together(self, seconds: float) -> None:
        """Many at a time."""
        done = 0
        end = time.perf_counter() + seconds

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() < end:
                await self._call()
                done += 1

        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(CALLERS):
                nursery.start_soon(caller)
        self.rates.append(done / (time.perf_counter() - started))

    @property
    def p50(self) -> float:
        return statistics.median(self.times)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


@contextmanager
def echo_server(path: Path) -> Iterator[None]:
    """The floor, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, __file__, "serve", str(path)],
        env=environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate(b"\n")


async def measure(node: NodeProcess, path: Path) -> dict[str, Subject]:
    door = node.paths.root / "grpc.sock"
    async with plugin.connect(f"grpc+unix://{door}"):
        pass  # the first client makes the node load grpcio, and is passed on by the node
    async with (
        node.connect() as local,
        plugin.connect(f"grpc+unix://{door}") as typed,
        open_channel(f"unix:{path}") as bare,
        open_channel(f"unix:{door}") as channel,
    ):
        await local.deploy(ArtifactUpload(name="f", filename="echo.wat", content=ECHO))
        request = InvokeRequest(function="f", payload=PAYLOAD)
        message = function_pb2.InvokeFunctionRequest(function="f", payload=PAYLOAD)
        data = message.SerializeToString()
        answer = await channel.call(INVOKE, data)
        assert function_pb2.InvokeFunctionResponse.FromString(answer).result.output == PAYLOAD
        padded = bytes(len(answer))
        subjects = {
            "echo": Subject(lambda: bare.call("/bench/Echo", padded)),
            "invoke": Subject(lambda: channel.call(INVOKE, data)),
            "typed": Subject(lambda: typed.invoke(request)),
            "local": Subject(lambda: local.invoke(request)),
        }
        for warm in (True, *[False] * ROUNDS):
            for subject in subjects.values():
                await subject.alone(ONE_S)
                await subject.together(MANY_S)
                if warm:
                    subject.times.clear()
                    subject.rates.clear()
    return subjects


def show(report: Report, subjects: dict[str, Subject]) -> None:
    bare, invoke = subjects["echo"], subjects["invoke"]
    typed, local = subjects["typed"], subjects["local"]
    report.row("floor: echo on the same gRPC, p50", bare.p50, "us")
    report.row(
        "wasm over gRPC, p50", invoke.p50, "us", floor=bare.p50, target=f"<= {1.5 * bare.p50:.0f}"
    )
    report.row("… p99", percentile(invoke.times, 99), "us", floor=percentile(bare.times, 99))
    report.row("… with the typed client, p50", typed.p50, "us", floor=bare.p50)
    report.row(f"floor: echo, {CALLERS} in flight", bare.rate, "/s")
    report.row(
        f"wasm over gRPC, {CALLERS} in flight",
        invoke.rate,
        "/s",
        floor=bare.rate,
        target=f">= {0.6 * bare.rate:.0f}",
    )
    report.row("… with the typed client", typed.rate, "/s", floor=bare.rate)
    report.row(
        f"local socket, {CALLERS} in flight (floor: over gRPC)",
        local.rate,
        "/s",
        floor=typed.rate,
        target=f">= {3 * typed.rate:.0f}",
    )
    report.row(
        "local socket, one caller (floor: over gRPC)",
        1e6 / local.p50,
        "/s",
        floor=1e6 / typed.p50,
        target=f">= {3e6 / typed.p50:.0f}",
    )


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        trio.run(serve_echo, sys.argv[2])
        return
    with (
        Report("calling over gRPC: client process, front door, guest") as report,
        tempfile.TemporaryDirectory(prefix="spear-bench-") as folder,
        run_node() as node,
        echo_server(Path(folder) / "echo"),
    ):
        show(report, trio.run(measure, node, Path(folder) / "echo"))


if __name__ == "__main__":
    main()
