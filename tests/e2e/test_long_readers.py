"""Readers that stay for minutes while what they read is written over, thousands of times.

``SPEAR_HOLD_S`` says for how many seconds; by default a moment, three minutes in ``nox -s
endurance``.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.client import connect

SPEAR = str(Path(sys.executable).with_name("spear"))
HOLD_S = float(os.environ.get("SPEAR_HOLD_S", "1"))
TIMES = 10_000 if HOLD_S >= 60 else 400
"""How often each key is written over meanwhile."""
AT_ONCE = 20
SIZES = {"inline": 50_000, "file": 100_000}
"""Of what is written again and again: in the store's own file, or in one beside it."""
FILM = 8 << 20
"""Bytes of a value that a stalled reader is in the middle of."""
MOST = (16 << 20) + FILM + sum(SIZES.values()) * 2 * AT_ONCE
"""Bytes that the store may have on the disk, at any time: 1.5 GB are written in three minutes."""
CONFIG = """
[stores]
objects = "lmdb"
[plugins.store-lmdb]
objects_durability = "process"
"""
HOLDER = """
import hashlib
import time

from spear_sdk import Context, function


@function
def hold(seconds: str, ctx: Context) -> str:
    found = [ctx.objects.get(key) for key in ("inline", "file")]
    ctx.log.info("holding %s", [stored.version for stored in found])
    time.sleep(float(seconds))
    return " ".join(hashlib.sha256(stored).hexdigest() for stored in found)
"""


def on_disk(home: Any, node: Any) -> int:
    """Bytes of the store's files, with those that have no name any more and are still open or
    mapped."""
    folder = home.state / "plugins" / "store-lmdb" / "objects"
    sizes = {}
    for path in [*folder.rglob("*"), *unnamed(node.process.pid)]:
        with suppress(FileNotFoundError):
            stat = path.stat()
            sizes[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(sizes.values())


def unnamed(pid: int) -> Iterator[Path]:
    proc = Path(f"/proc/{pid}")
    for kind in ("fd", "map_files"):
        for link in (proc / kind).iterdir():
            with suppress(OSError):
                if re.search(r"/objects/.* \(deleted\)$", os.readlink(link)):
                    yield link


def turn_of(size: int, turn: int) -> bytes:
    """Bytes of that size that no other turn has."""
    return random.Random(turn).randbytes(32) * (size // 32)


async def write_over(home: Any, node: Any) -> tuple[float, int]:
    """``TIMES`` writes of each key, over all of the time; for how many seconds, and the most that
    there was on the disk."""
    begun, most = trio.current_time(), 0
    async with connect(state_dir=home.state) as client:
        for turn in range(0, TIMES, AT_ONCE):
            async with trio.open_nursery() as nursery:
                for number in range(turn, turn + AT_ONCE):
                    for key, size in SIZES.items():
                        value = turn_of(size, number)
                        nursery.start_soon(client.objects.put, f"holder/{key}", value)
            most = max(most, on_disk(home, node))
            await trio.sleep_until(begun + HOLD_S * (turn + AT_ONCE) / TIMES)
        await client.objects.put("holder/film", b"short")
    return trio.current_time() - begun, most


@pytest.fixture
def node(home: Any) -> Any:
    (home.folder / "config.toml").write_text(CONFIG)
    (home.folder / "holder.py").write_text(HOLDER)
    node = home.node("--config", "config.toml")
    assert home.spear("deploy", "holder.py").status == 0
    return node


def put(home: Any, key: str, value: bytes) -> None:
    told = home.spear("objects", "put", f"holder/{key}", "-", stdin=value)
    assert told.status == 0, told.err


def test_readers_that_stay(home: Any, node: Any, capsys: Any) -> None:
    """An agent that maps them, and a command that nobody reads from: they see what they began with,
    and the store stays small."""
    before = {key: turn_of(size, -1) for key, size in SIZES.items()}
    film = random.Random(-2).randbytes(FILM)
    for key, value in {**before, "film": film}.items():
        put(home, key, value)
    stalled = subprocess.Popen(
        [SPEAR, "objects", "get", "holder/film"],
        env=home.environ(),
        stdout=subprocess.PIPE,
    )
    home.processes.append(stalled)
    assert stalled.stdout is not None
    first = stalled.stdout.read(1)
    task = home.spear(
        "invoke", "holder:hold", "--input", str(HOLD_S), "--async", "--timeout", f"{HOLD_S + 60}s"
    ).out.strip()  # fmt: skip
    home.wait_until(lambda: "holding [1, 1]" in home.spear("logs", task).out, "it has them")
    seconds, most = trio.run(write_over, home, node)
    assert first + stalled.stdout.read() == film
    assert stalled.wait(60) == 0
    told = home.spear("result", task, "--wait", within=HOLD_S + 60)
    assert told.out.split() == [hashlib.sha256(before[key]).hexdigest() for key in SIZES], told.err
    with capsys.disabled():
        print(f" held {seconds:.0f} s, {TIMES} × 2 overwrites, at most {most >> 10} KiB on disk")
    assert seconds >= HOLD_S
    assert most < MOST
    home.wait_until(lambda: on_disk(home, node) < FILM, "the old versions are collected")
