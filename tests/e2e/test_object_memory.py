"""Values larger than memory: what carries one has little of it at a time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WHOLE = 256 << 20
"""Bytes of a value that would show in the memory of whoever held it, or a good part of it."""
SHORT = 16 << 20
"""Of one that is carried before: what it takes is taken by every value."""
MOST = 24 << 20
"""By how much more a process may have had, at its worst moment, for the whole one."""

PEAK = """
import re


def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1]) << 10


"""
COMMAND = """
import sys

from spear_core.cli import run

status = run(sys.argv[1:])
print(peak(), file=sys.stderr)
sys.exit(status)
"""
"""``spear``, which says last how much memory it had."""
CLIENT = """
import sys
from pathlib import Path

import trio

from spear_core.client import connect


async def carry(node, size):
    async with node.objects.create("a/x", size=size) as writer:
        for _ in range(size >> 20):
            await writer.write(b"x" * (1 << 20))  # bytes() is memory only once it is written
        await writer.commit()
    async with node.objects.read("a/x") as reader:
        assert sum([len(piece) async for piece in reader]) == size


async def main(state):
    async with connect(state_dir=state) as node:
        for size in sys.argv[2:]:
            await carry(node, int(size))
            print(peak())


trio.run(main, Path(sys.argv[1]))
"""
AGENT = """
from spear_sdk import Context, function


@function
def carry(size: str, ctx: Context) -> str:
    with ctx.objects.create("x") as writer:
        for _ in range(int(size) >> 20):
            writer.write(b"x" * (1 << 20))
    with ctx.objects.open("x") as reader:
        assert sum(map(len, reader)) == int(size)
    return str(peak())
"""


@pytest.fixture
def node(home: Any) -> Any:
    (home.folder / "config.toml").write_text('[stores]\nobjects = "lmdb"\n')
    return home.node("--config", "config.toml")


def peak(node: Any) -> int:
    """The most memory that the node has had, in bytes."""
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) << 10


def spear(home: Any, *args: str) -> int:
    """Run the real command line; the most memory it had."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + COMMAND, "objects", *args],
        cwd=home.folder,
        env=home.environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stderr.splitlines()[-1])


def test_the_command_line_and_its_node(home: Any, node: Any) -> None:
    with (home.folder / "file").open("wb") as file:
        peaks = []
        for size in (SHORT, WHOLE):
            file.truncate(size)
            put = spear(home, "put", "a/x", "file")
            into_file = spear(home, "get", "a/x", "-o", "copy")
            assert (home.folder / "copy").stat().st_size == size
            to_stdout = spear(home, "get", "a/x")
            peaks.append((put, into_file, to_stdout, peak(node)))
    grown = [after - before for before, after in zip(*peaks, strict=True)]
    assert max(grown) < MOST, grown


def test_the_command_line_and_a_node_behind_grpc(home: Any, node: Any) -> None:
    url = f"grpc+unix://{home.state}/grpc.sock"
    with (home.folder / "file").open("wb") as file:
        peaks = []
        for size in (SHORT, WHOLE):
            file.truncate(size)
            put = spear(home, "put", "a/x", "file", "--node", url)
            get = spear(home, "get", "a/x", "--node", url)
            peaks.append((put, get, peak(node)))
    grown = [after - before for before, after in zip(*peaks, strict=True)]
    assert max(grown) < MOST, grown


def test_the_client_and_its_node(home: Any, node: Any) -> None:
    def carry(*sizes: int) -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", PEAK + CLIENT, str(home.state), *map(str, sizes)],
            cwd=home.folder, env=home.environ(), capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return [int(line) for line in done.stdout.split()]

    carry(SHORT)
    before = peak(node)
    short, whole = carry(SHORT, WHOLE)
    assert whole - short < MOST
    assert peak(node) - before < MOST


def test_an_agent_and_its_node(home: Any, node: Any) -> None:
    (home.folder / "carrier.py").write_text(PEAK + AGENT)
    assert home.spear("deploy", "carrier.py").status == 0

    def carry(size: int) -> int:
        told = home.spear("invoke", "carrier:carry", "--input", str(size))
        assert told.status == 0, told.err
        return int(told.out)

    agent, before = carry(SHORT), peak(node)
    assert carry(WHOLE) - agent < MOST
    assert peak(node) - before < MOST
