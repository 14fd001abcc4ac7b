"""Calling a function over gRPC: a client process, the front door `grpc`, a wasm guest.

Floors: an echo service in a process of its own, called by the same client with messages of the same
size; once as grpcio's own asyncio server, which is what one would write without us, and once under
our own bridge (C-core under trio, no protobuf, no node), which is what the node stands on. Both are
targets; only the first is independent: what quickens the bridge raises the second's.

Beside it the local socket, the same function; and questions that run no guest, so that the two ways
to a node are compared and not the guest with itself. All take turns, so that a busy moment of the
machine hits all alike.
"""

from __future__ import annotations

import asyncio
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

ROUNDS = 5
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


async def serve_asyncio(path: str) -> None:
    """The same with what grpcio brings along."""
    import grpc

    async def answer(data: bytes, context: object) -> bytes:
        return data

    server = grpc.aio.server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
    generic = grpc.method_handlers_generic_handler("bench", handlers)
    server.add_generic_rpc_handlers((generic,))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await server.stop(None)


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
def echo_server(kind: str, path: Path) -> Iterator[None]:
    """A floor, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, __file__, kind, str(path)],
        env=environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate(b"\n")


async def measure(node: NodeProcess, folder: Path) -> dict[str, Subject]:
    door = node.paths.root / "grpc.sock"
    async with plugin.connect(f"grpc+unix://{door}"):
        pass  # the first client makes the node load grpcio, and is passed on by the node
    async with (
        node.connect() as local,
        plugin.connect(f"grpc+unix://{door}") as typed,
        open_channel(f"unix:{folder}/asyncio") as plain,
        open_channel(f"unix:{folder}/bridge") as bridge,
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
            "asyncio": Subject(lambda: plain.call("/bench/Echo", padded)),
            "bridge": Subject(lambda: bridge.call("/bench/Echo", padded)),
            "invoke": Subject(lambda: channel.call(INVOKE, data)),
            "typed": Subject(lambda: typed.invoke(request)),
            "local": Subject(lambda: local.invoke(request)),
            "typed status": Subject(typed.status),
            "local status": Subject(local.status),
        }
        for warm in (True, *[False] * ROUNDS):
            for subject in subjects.values():
                await subject.alone(ONE_S)
                await subject.together(MANY_S)
                if warm:
                    subject.times.clear()
                    subject.rates.clear()
    return subjects


def show_grpc(report: Report, subjects: dict[str, Subject]) -> None:
    plain, bridge = subjects["asyncio"], subjects["bridge"]
    invoke, typed = subjects["invoke"], subjects["typed"]
    report.row("floor: echo, grpcio's asyncio server, p50", plain.p50, "us")
    report.row("floor: echo, our bridge, p50", bridge.p50, "us")
    report.row(
        "wasm over gRPC, p50", invoke.p50, "us", floor=plain.p50, target=f"<= {1.5 * plain.p50:.0f}"
    )
    report.row(
        "… to our bridge's echo",
        invoke.p50,
        "us",
        floor=bridge.p50,
        target=f"<= {1.5 * bridge.p50:.0f}",
    )
    report.row("… p99", percentile(invoke.times, 99), "us", floor=percentile(plain.times, 99))
    report.row("… with the typed client, p50", typed.p50, "us", floor=plain.p50)
    report.row(f"floor: echo, grpcio's asyncio server, {CALLERS} in flight", plain.rate, "/s")
    report.row(f"floor: echo, our bridge, {CALLERS} in flight", bridge.rate, "/s")
    target = f">= {0.6 * plain.rate:.0f}"
    report.row(
        f"wasm over gRPC, {CALLERS} in flight", invoke.rate, "/s", floor=plain.rate, target=target
    )
    target = f">= {0.6 * bridge.rate:.0f}"
    report.row("… to our bridge's echo", invoke.rate, "/s", floor=bridge.rate, target=target)
    report.row("… with the typed client", typed.rate, "/s", floor=plain.rate)


def show_local(report: Report, subjects: dict[str, Subject]) -> None:
    for what, name in (("status", " status"), ("wasm", "")):
        local, typed = subjects[f"local{name}"], subjects[f"typed{name}"]
        report.row(
            f"local socket, {what}, {CALLERS} in flight (floor: over gRPC)",
            local.rate,
            "/s",
            floor=typed.rate,
            target=f">= {3 * typed.rate:.0f}",
        )
        report.row(
            f"local socket, {what}, one caller (floor: over gRPC)",
            1e6 / local.p50,
            "/s",
            floor=1e6 / typed.p50,
            target=f">= {3e6 / typed.p50:.0f}",
        )


def main() -> None:
    if sys.argv[1:2] == ["bridge"]:
        trio.run(serve_echo, sys.argv[2])
        return
    if sys.argv[1:2] == ["asyncio"]:
        asyncio.run(serve_asyncio(sys.argv[2]))
        return
    with (
        Report("calling over gRPC: client process, front door, guest") as report,
        tempfile.TemporaryDirectory(prefix="spear-bench-") as name,
        run_node() as node,
        echo_server("bridge", Path(name) / "bridge"),
        echo_server("asyncio", Path(name) / "asyncio"),
    ):
        subjects = trio.run(measure, node, Path(name))
        show_grpc(report, subjects)
        show_local(report, subjects)


if __name__ == "__main__":
    main()
