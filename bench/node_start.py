"""How fast a node is there, and how much memory it and a warm Python agent hold (PSS).

Floors: for the start a Python that imports trio and runs an empty loop; for the memory that same
Python while it waits.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import trio
from _node import AGENT, NodeProcess, environ, run_node
from _report import Report
from _wasm import ECHO

from spear_core.api import ArtifactUpload, InvokeRequest, NodeApi

STARTS = 7
IDLE_S = 1.0
BARE = "import trio; trio.run(trio.sleep, 0); print(flush=True); input()"


def pss_mib(pid: int) -> float:
    """Proportional set size of one process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024


def pss_of_tree_mib(pid: int) -> float:
    """The same, of a process and everything below it."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(pss_mib(process.pid) for process in tree)


def bare_start() -> tuple[float, float]:
    """Milliseconds until a bare trio program runs, and its PSS in MiB."""
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", BARE],
        env=environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        elapsed = (time.perf_counter() - started) * 1e3
        pss = pss_mib(process.pid)
        process.communicate(b"\n")
    return elapsed, pss


async def first_answer(node: NodeProcess) -> float:
    """Milliseconds from the start of the node's process until a client had an answer."""
    started = time.perf_counter()
    async with node.connect() as api:
        await api.status()
        return (node.started_in + time.perf_counter() - started) * 1e3


async def warm_agent(api: NodeApi, name: str) -> float:
    """Milliseconds of an agent's first answer, which begins with its start."""
    await api.deploy(ArtifactUpload(name=name, filename="echo.py", content=AGENT))
    started = time.perf_counter()
    response = await api.invoke(InvokeRequest(function=name, payload=b"x"))
    assert response.success, response.message
    return (time.perf_counter() - started) * 1e3


async def agents(report: Report, node: NodeProcess) -> None:
    async with node.connect() as api:
        cold = [await warm_agent(api, f"agent{number}") for number in range(2)]
        await trio.sleep(IDLE_S)
        before = pss_of_tree_mib(node.process.pid)
        cold += [await warm_agent(api, f"agent{number}") for number in range(2, 6)]
        await trio.sleep(IDLE_S)
        after = pss_of_tree_mib(node.process.pid)
        report.row("an agent's first answer, from the zygote", statistics.median(cold[1:]), "ms")
        report.row("the very first one", cold[0], "ms")
        report.row("one more warm Python agent, PSS", (after - before) / 4, "MiB", target="<= 15")


def main() -> None:
    with Report("the node: start and memory") as report:
        bare = [bare_start() for _ in range(STARTS)]
        floor_ms, floor_pss = min(ms for ms, _ in bare), min(pss for _, pss in bare)
        answers = []
        for _ in range(STARTS):
            with run_node(config="") as node:
                answers.append(trio.run(first_answer, node))
        report.row("start to first answer, best", min(answers), "ms", floor=floor_ms,
                   target="<= 300")  # fmt: skip
        report.row("… median", statistics.median(answers), "ms", floor=floor_ms)
        with run_node(config="") as node:
            trio.run(first_answer, node)
            time.sleep(IDLE_S)
            report.row("idle node, PSS of all its processes", pss_of_tree_mib(node.process.pid),
                       "MiB", floor=floor_pss, target="<= 45")  # fmt: skip
            trio.run(wasm_ready, node)
            time.sleep(IDLE_S)
            report.row("… after its first wasm call", pss_of_tree_mib(node.process.pid), "MiB")
            trio.run(agents, report, node)


async def wasm_ready(node: NodeProcess) -> None:
    async with node.connect() as api:
        await api.deploy(ArtifactUpload(name="wasm", filename="echo.wat", content=ECHO))
        await api.invoke(InvokeRequest(function="wasm", payload=b"x"))


if __name__ == "__main__":
    main()
