"""From nothing to the first answer: commands, and agents with and without the zygote.

The floor is the start of a bare interpreter that does nothing (`python -I -S -c pass`), for
commands that of /bin/true.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import trio
from _process import AGENT, REQUEST, open_bench
from _report import Report, percentile

from spear_runtime_process._config import ProcessConfig

ROUNDS = 15
TRUE = Path("/bin/true").read_bytes()


def spawn(argv: list[str]) -> list[float]:
    """Milliseconds to run a program to its end, each time."""
    samples = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        subprocess.run(argv, check=True)
        samples.append((time.perf_counter() - started) * 1e3)
    return samples


def pss(pid: int) -> float:
    """MiB that this process is charged for, shared pages in equal parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(pid)


async def agent(zygote: str) -> tuple[float, list[float], float]:
    """The first start, the later ones, and what the fifth warm worker costs in memory."""
    async with open_bench(ProcessConfig(zygote=zygote)) as bench:
        artifact = await bench.prepare(AGENT, "noop.py", "agent")
        samples: list[float] = []
        for _ in range(ROUNDS + 1):
            if len(samples) == 1:
                await trio.sleep(1)  # the zygote imports the standard library when it is idle
            started = time.perf_counter()
            async with bench.runtime.open_instance(bench.spec(artifact)) as instance:
                response = await instance.execute(REQUEST)
                samples.append((time.perf_counter() - started) * 1e3)
                assert response.error is None, response.error
        return samples[0], samples[1:], await memory(bench, artifact, 5)


async def memory(bench, artifact, more: int) -> float:  # type: ignore[no-untyped-def]
    """PSS of the last of several warm workers that all live at the same time."""
    async with bench.runtime.open_instance(bench.spec(artifact)) as instance:
        await instance.execute(REQUEST)
        if more > 1:
            return await memory(bench, artifact, more - 1)
        pid = instance.statistics().pid
        assert pid is not None
        return pss(pid)


async def command(isolation: str) -> list[float]:
    """Milliseconds to execute /bin/true through the runtime, each time."""
    async with open_bench(ProcessConfig(isolation=isolation)) as bench:
        artifact = await bench.prepare(TRUE, "true", "command")
        samples = []
        async with bench.runtime.open_instance(bench.spec(artifact)) as instance:
            for _ in range(ROUNDS + 1):
                started = time.perf_counter()
                response = await instance.execute(REQUEST)
                samples.append((time.perf_counter() - started) * 1e3)
                assert response.error is None, response.error
        return samples[1:]


async def main() -> None:
    with Report("process runtime: cold starts") as report:
        bare = percentile(spawn([sys.executable, "-I", "-S", "-c", "pass"]), 50)
        report.row("bare python -I -S -c pass, p50", bare, "ms")
        for zygote, label in (("lazy", "from the zygote"), ("off", "without the zygote")):
            first, later, size = await agent(zygote)
            target = "<= 20" if zygote == "lazy" else None
            report.row(
                f"agent {label}, p50", percentile(later, 50), "ms", floor=bare, target=target
            )
            report.row(f"agent {label}, min", min(later), "ms", floor=bare)
            report.row(f"agent {label}, the very first", first, "ms", floor=bare)
            report.row(f"agent {label}, PSS of one more", size, "MiB", target="<= 15")
        true = percentile(spawn(["/bin/true"]), 50)
        report.row("bare /bin/true, p50", true, "ms")
        for isolation in ("none", "limits", "syscalls", "namespaces"):
            samples = await command(isolation)
            report.row(f"command at {isolation}, p50", percentile(samples, 50), "ms", floor=true)
            report.row(f"command at {isolation}, min", min(samples), "ms", floor=true)


trio.run(main)
