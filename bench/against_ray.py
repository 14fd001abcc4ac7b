"""A noop through SPEAR and through Ray on this machine: `nox -s bench_ray`.

Both have their warm-up, both get 1 KiB and give it back, both are called from one client process.
Ray runs its `ray.remote` function, its usual way to run a task, and, shown beside it, a method of
an actor, which is a worker that stays. The script starts Ray on this machine alone and stops it
before SPEAR is measured, so that neither disturbs the other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import trio
from _node import AGENT, run_node
from _report import Report, percentile
from _wasm import ECHO
from invoke_path import CALLS, IN_FLIGHT, PAYLOAD, p50, through_the_node

from spear_core.api import ArtifactUpload

RAY_CALLS = 1_000
RAY_ROUNDS = 3


def ray_latency(call: Callable[[], object]) -> float:
    """p50 in ms of one call after the other, best of some rounds."""
    rounds = []
    for _ in range(RAY_ROUNDS):
        times = []
        for _ in range(RAY_CALLS):
            started = time.perf_counter()
            call()
            times.append((time.perf_counter() - started) * 1e3)
        rounds.append(percentile(times, 50))
    return min(rounds)


def ray_rate(submit: Callable[[], object], get: Callable[[object], object]) -> float:
    """Calls per second with all of them submitted before the first result is asked for, which is
    how Ray is fastest; best of some rounds."""
    rates = []
    for _ in range(RAY_ROUNDS):
        started = time.perf_counter()
        get([submit() for _ in range(CALLS)])
        rates.append(CALLS / (time.perf_counter() - started))
    return max(rates)


def measure_ray(report: Report) -> tuple[float, float]:
    """p50 in ms and calls per second of a Ray task."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:

        def same(data: bytes) -> bytes:
            return data

        class Same:
            def call(self, data: bytes) -> bytes:
                return data

        task = ray.remote(same)
        actor = ray.remote(Same).remote()
        ray.get([task.remote(PAYLOAD) for _ in range(RAY_CALLS)])
        ray.get([actor.call.remote(PAYLOAD) for _ in range(RAY_CALLS)])
        latency = ray_latency(lambda: ray.get(task.remote(PAYLOAD)))
        rate = ray_rate(lambda: task.remote(PAYLOAD), ray.get)
        report.row(f"Ray {ray.__version__}: task, p50", latency, "ms")
        report.row("… calls per second", rate, "/s")
        beside = ray_latency(lambda: ray.get(actor.call.remote(PAYLOAD)))
        report.row("beside: a method of a Ray actor, p50", beside, "ms")
        beside = ray_rate(lambda: actor.call.remote(PAYLOAD), ray.get)
        report.row("… calls per second", beside, "/s")
    finally:
        ray.shutdown()
    return latency, rate


async def measure_spear(report: Report, ray_ms: float, ray_per_s: float) -> None:
    """The rows of SPEAR, with how much better than a Ray task each is."""
    wanted = {"wasm": ">= 3", "agent": ">= 1.5"}
    with run_node() as node:
        async with node.connect() as api:
            await api.deploy(ArtifactUpload(name="wasm", filename="echo.wat", content=ECHO))
            await api.deploy(ArtifactUpload(name="agent", filename="echo.py", content=AGENT))
            for name, target in wanted.items():
                rounds, rate = await through_the_node(api, name)
                latency = p50(rounds)
                report.row(f"SPEAR {name}, p50", latency, "ms", floor=ray_ms)
                report.row(f"… {IN_FLIGHT} in flight", rate, "/s", floor=ray_per_s)
                report.row("… latency, times better than Ray's task", ray_ms / latency, "x",
                           target=target)  # fmt: skip
                report.row("… rate, times better than Ray's task", rate / ray_per_s, "x",
                           target=target)  # fmt: skip


def main() -> None:
    with Report("a noop, 1 KiB each way: SPEAR beside Ray") as report:
        ray_ms, ray_per_s = measure_ray(report)
        trio.run(measure_spear, report, ray_ms, ray_per_s)


if __name__ == "__main__":
    main()
