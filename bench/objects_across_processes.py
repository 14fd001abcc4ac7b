"""Objects from one process agent to another, through a real node.

Both agents measure inside their function: a put from a buffer they have until it is acknowledged, a
get until there is a view whose first and last byte were read. Floors, measured in the same function
right before: one copy of the value into memory that was not there before, and, where the node
hashes, one sha256 of it. Both stores are held to the targets for 64 MiB, although what `lmdb`
acknowledges is on the disk.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import trio
from _node import run_node
from _report import Report

from spear_core.api import ArtifactUpload, InvokeRequest, NodeApi, ObjectGrants

SIZES = {
    "1 KiB": 1 << 10,
    "16 KiB": 16 << 10,
    "64 KiB": 64 << 10,
    "256 KiB": 256 << 10,
    "1 MiB": 1 << 20,
    "16 MiB": 16 << 20,
    "64 MiB": 64 << 20,
    "256 MiB": 256 << 20,
}
AGENT = b"""
import hashlib, mmap, time
from spear_sdk import Context, function

def best(work, rounds):
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        kept = work()
        times.append(time.perf_counter() - started)
        del kept
    return min(times)

def copied(value):
    memory = mmap.mmap(-1, len(value))
    memory[:] = value
    return memory

@function
def put(size: int, ctx: Context) -> dict:
    value = memoryview(bytes(range(256)) * (size // 256))
    rounds = 5 if size > 1 << 20 else 50
    copy = best(lambda: copied(value), rounds)
    digest = best(lambda: hashlib.sha256(value), rounds)
    plain = best(lambda: ctx.objects.put("value", value, hashed=False), rounds)
    hashed = best(lambda: ctx.objects.put("value", value), rounds)
    return {"copy": copy, "digest": digest, "plain": plain, "hashed": hashed}

@function
def get(size: int, ctx: Context) -> dict:
    def read():
        view = memoryview(ctx.objects.get("/producer/value"))
        assert len(view) == size and view[0] == 0 and view[-1] == 255
        return view
    rounds = 50
    view = read()
    copy = best(lambda: copied(view), 5)
    return {"copy": copy, "get": best(read, rounds)}
"""


async def ask(api: NodeApi, function: str, size: int) -> Any:
    request = InvokeRequest(
        function=function, payload=str(size).encode(), content_type="application/json"
    )
    result = (await api.invoke(request)).task.result
    assert result is not None
    assert result.error is None, result.error
    return msgspec.json.decode(result.output)


async def measure(report: Report, api: NodeApi, store: str) -> None:
    await api.deploy(ArtifactUpload(name="producer", filename="agent.py", content=AGENT))
    may = ObjectGrants(read=("producer/",))
    consumer = ArtifactUpload(name="consumer", filename="agent.py", content=AGENT, objects=may)
    await api.deploy(consumer)
    for name, size in SIZES.items():
        put = await ask(api, "producer:put", size)
        get = await ask(api, "consumer:get", size)
        held = size == 64 << 20
        copy, both = put["copy"] * 1e3, (put["copy"] + put["digest"]) * 1e3
        report.row(
            f"{store}: put of {name}",
            put["plain"] * 1e3,
            "ms",
            floor=copy,
            target=f"<= {1.3 * copy:.2f}" if held else None,
        )
        report.row(
            f"{store}: put of {name}, hashed",
            put["hashed"] * 1e3,
            "ms",
            floor=both,
            target=f"<= {1.3 * both:.2f}" if held else None,
        )
        report.row(
            f"{store}: get of {name}",
            get["get"] * 1e3,
            "ms",
            floor=get["copy"] * 1e3,
            target="<= 1" if size == 64 << 20 else None,
        )


def main() -> None:
    with Report("Objects across processes") as report, tempfile.TemporaryDirectory() as folder:
        for store in ("memory", "lmdb"):
            config = Path(folder) / f"{store}.toml"
            config.write_text(
                f'[stores]\nobjects = "{store}"\n'
                "[plugins.builtins]\nmemory_store_bytes = 2147483648\n"
            )

            async def run(node: Any, name: str = store) -> None:
                async with node.connect() as api:
                    await measure(report, api, name)

            with run_node("--config", str(config)) as node:
                trio.run(run, node)


if __name__ == "__main__":
    main()
