"""Eight processes add one to the same object, each 20,000 times, through a node's local socket.

Every write names the version it has read, and the sum must be exact.

Usage: objects_compare_and_swap.py [INCREMENTS] [--json]
"""

from __future__ import annotations

import subprocess
import sys
import time

import trio
from _node import connect, environ, run_node
from _report import Report

from spear_core.errors import ObjectConflictError

PROCESSES = 8
INCREMENTS = 20_000
KEY = "shared/count"
STORES = {
    "in memory": '[stores]\nobjects = "memory"\nmetadata = "memory"\n',
    "in LMDB, not awaiting the disk": (
        '[tasks]\ndurable = "off"\n[plugins.store-lmdb]\nobjects_durability = "process"\n'
    ),
}


async def increment(url: str, count: int) -> None:
    """Add one so often; prints how often somebody else was first."""
    conflicts = value = version = 0
    async with connect(url) as node:
        while count:
            try:
                new = b"%d" % (value + 1)
                stat = await node.objects.put(KEY, new, expect=version, hashed=False)
            except ObjectConflictError:
                conflicts += 1
                stat, found = await node.objects.get(KEY)
                value, version = int(found), stat.version
            else:
                count -= 1
                value, version = value + 1, stat.version
    print(conflicts)


def measure(config: str, count: int) -> tuple[float, int]:
    """Seconds, and conflicts in all. :raises AssertionError: an increment was lost."""
    with run_node(config=config) as node:
        command = [sys.executable, __file__, "--increment", node.paths.url, str(count)]
        started = time.perf_counter()
        workers = [
            subprocess.Popen(command, env=environ(), stdout=subprocess.PIPE)
            for _ in range(PROCESSES)
        ]
        said = [worker.communicate()[0] for worker in workers]
        took = time.perf_counter() - started

        async def total() -> int:
            async with connect(node.paths.url) as api:
                return int((await api.objects.get(KEY))[1])

        assert [worker.returncode for worker in workers] == [0] * PROCESSES
        found = trio.run(total)
        assert found == PROCESSES * count, f"{found} of {PROCESSES * count}"
    return took, sum(map(int, said))


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
    count = counts[0] if counts else INCREMENTS
    with Report(f"{PROCESSES} processes add one to an object {count:,} times each") as report:
        for name, config in STORES.items():
            took, conflicts = measure(config, count)
            report.row(f"increments {name}", PROCESSES * count / took, "/s")
            report.row(f"conflicts for each, {name}", conflicts / count / PROCESSES, "")


if __name__ == "__main__":
    if "--increment" in sys.argv:
        trio.run(increment, sys.argv[2], int(sys.argv[3]))
    else:
        main()
