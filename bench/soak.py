"""Ten thousand executions leave no process, thread, descriptor, file, socket or memory behind.

Wasm functions, warm agents and commands, successes and failures and cancellations among them,
through a real node. What the node holds is counted after a warm-up and after the rest; any growth
but memory's small change is a failure (exit status 1).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import attrs
import psutil
import trio
from _node import NodeProcess, run_node
from _report import Report
from _wasm import ECHO, LOOP

from spear_core.api import ArtifactUpload, InvokeRequest, NodeApi

AGENT = b"""
from spear_sdk import function

@function
def echo(data: bytes) -> bytes:
    if data == b"fail":
        raise ValueError("as asked")
    return data
"""
COMMAND = b"#!/bin/sh\nexec cat\n"
IN_FLIGHT = 32
MEMORY_SLACK_MIB = 4.0
KEPT = 100
CONFIG = f"[tasks]\nkeep_finished = {KEPT}\n"


@attrs.frozen
class Held:
    """What a node and everything below it hold."""

    processes: int
    threads: int
    descriptors: int
    sockets: int
    files: int
    """In its state directory, but for the logs of tasks."""
    memory_mib: float
    """USS of the node alone."""


def held(node: NodeProcess) -> Held:
    """Count it now."""
    main = psutil.Process(node.process.pid)
    tree = [main, *main.children(recursive=True)]
    kinds = Counter(
        "sockets" if os.readlink(link).startswith("socket:") else "others"
        for process in tree
        for link in Path(f"/proc/{process.pid}/fd").iterdir()
    )
    return Held(
        processes=len(tree),
        threads=sum(process.num_threads() for process in tree),
        descriptors=kinds.total(),
        sockets=kinds["sockets"],
        files=sum(
            len(names)
            for folder, _, names in os.walk(node.paths.root)
            if folder != str(node.paths.task_logs)
        ),
        memory_mib=main.memory_full_info().uss / 2**20,
    )


async def deploy(api: NodeApi) -> None:
    for name, filename, content in (
        ("wasm", "echo.wat", ECHO),
        ("loop", "loop.wat", LOOP),
        ("agent", "echo.py", AGENT),
        ("command", "cat.sh", COMMAND),
    ):
        await api.deploy(
            ArtifactUpload(name=name, filename=filename, content=content, executable=True)
        )


def request(number: int) -> tuple[InvokeRequest, bool]:
    """The call with this number, and whether it should succeed."""
    payload = b"%d" % number
    match number % 200:
        case 0:
            return InvokeRequest(function="command", payload=payload), True
        case 1:
            return InvokeRequest(function="loop", timeout_s=0.05), False
        case 2:
            return InvokeRequest(function="agent", payload=b"fail"), False
        case rest if rest % 4 == 0:
            return InvokeRequest(function="agent", payload=payload), True
        case _:
            return InvokeRequest(function="wasm", payload=payload), True


async def work(api: NodeApi, numbers: range) -> None:
    """Make these calls, some at a time."""
    limiter = trio.CapacityLimiter(IN_FLIGHT)

    async def one(number: int) -> None:
        async with limiter:
            call, succeeds = request(number)
            response = await api.invoke(call)
            assert response.success is succeeds, (number, response.message)

    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(one, number)


async def soak(node: NodeProcess, executions: int) -> tuple[Held, Held, int]:
    """What is held after a fifth of the executions, and after the rest; task logs in the end."""
    async with node.connect() as api:
        await deploy(api)
        await work(api, range(executions // 5))
        await trio.sleep(1)
        before = held(node)
        for start in range(executions // 5, executions, executions // 5):
            await work(api, range(start, start + executions // 5))
        await trio.sleep(1)
        return before, held(node), len(os.listdir(node.paths.task_logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Report(f"soak: {options.executions} executions") as report:
        config = Path(os.environ.get("TMPDIR", "/tmp")) / f"spear-soak-{os.getpid()}.toml"
        config.write_text(CONFIG)
        try:
            with run_node("--config", str(config)) as node:
                before, after, logs = trio.run(soak, node, options.executions)
        finally:
            config.unlink()
        report.row("logs of tasks", logs, "", target=f"<= {KEPT}")
        grown = ["logs"] if logs > KEPT else []
        for name, first in attrs.asdict(before).items():
            last = getattr(after, name)
            slack = MEMORY_SLACK_MIB if name == "memory_mib" else 0
            unit = "MiB" if name == "memory_mib" else ""
            report.row(f"{name} after", last, unit, floor=first, target=f"<= {first + slack}")
            if last > first + slack:
                grown.append(name)
    if grown:
        sys.exit(f"grown: {', '.join(grown)}")


if __name__ == "__main__":
    main()
