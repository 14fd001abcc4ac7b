"""One execution on a warm agent, seen from the node's side of the channel.

Floors: a warm worker that echoes over a raw socket pair, and a noop through the standard
library's ProcessPoolExecutor.
"""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ProcessPoolExecutor

import trio
from _process import AGENT, REQUEST, open_bench
from _report import Report, percentile

ROUNDS = 3000


def noop(data: bytes) -> bytes:
    return data


def raw_socket() -> list[float]:
    """Microseconds per round trip with a forked echo on blocking sockets."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        while data := theirs.recv(65536):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()
    samples = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        ours.sendall(REQUEST.payload)
        ours.recv(65536)
        samples.append((time.perf_counter() - started) * 1e6)
    ours.close()
    os.wait()
    return samples


def pool() -> list[float]:
    """Microseconds per call through a process pool."""
    samples = []
    with ProcessPoolExecutor(1) as executor:
        executor.submit(noop, REQUEST.payload).result()
        for _ in range(ROUNDS):
            started = time.perf_counter()
            executor.submit(noop, REQUEST.payload).result()
            samples.append((time.perf_counter() - started) * 1e6)
    return samples


async def execute() -> list[float]:
    """Microseconds per execution through the runtime."""
    samples = []
    async with open_bench() as bench:
        artifact = await bench.prepare(AGENT, "noop.py", "agent")
        async with bench.runtime.open_instance(bench.spec(artifact)) as instance:
            for _ in range(ROUNDS):
                started = time.perf_counter()
                response = await instance.execute(REQUEST)
                samples.append((time.perf_counter() - started) * 1e6)
                assert response.error is None, response.error
    return samples


async def main() -> None:
    with Report("process runtime: a warm agent") as report:
        raw, pooled = raw_socket(), pool()
        floor = percentile(raw, 50)
        report.row("raw socket worker, p50", floor, "us")
        report.row("ProcessPoolExecutor noop, p50", percentile(pooled, 50), "us", floor=floor)
        samples = await execute()
        report.row("execute, p50", percentile(samples, 50), "us", floor=floor, target="<= 250")
        report.row("execute, p99", percentile(samples, 99), "us", floor=percentile(raw, 99))
        report.row("execute, min", min(samples), "us", floor=min(raw))


if __name__ == "__main__":
    trio.run(main)
