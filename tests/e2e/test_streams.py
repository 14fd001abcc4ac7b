"""Streams through a real node with the real command line: much data, slow readers, sudden ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

SPEAR = str(Path(sys.executable).with_name("spear"))
MUCH = 500_000_000
ROOM = 48 << 20
"""By how much a process may grow while so much passes through it."""
AGENT = """
from collections.abc import AsyncIterator, Iterator

from spear_sdk import Context, function


@function
async def echo(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk


@function
def flood(ctx: Context) -> Iterator[bytes]:
    try:
        while True:
            yield b"y" * 8192
    finally:
        ctx.log.info("the flood is over")


@function
def three(text: str) -> Iterator[str]:
    for number in range(3):
        yield f"chunk {number}\\n"
    raise ValueError(f"no more {text}")
"""
DATA = Path(__file__).parents[1] / "data"
CAT_WAT = (DATA / "cat.wat").read_text()
FILES = {"agent.py": AGENT, "cat.sh": "#!/bin/sh\nexec cat\n", "cat.wat": CAT_WAT}
KINDS = {"agent": "agent.py", "command": "cat.sh", "wasm": "cat.wat"}


@pytest.fixture
def node(home: Any) -> Any:
    node = home.node()
    for name, content in FILES.items():
        (home.folder / name).write_text(content)
    for name, file in KINDS.items():
        target = f"{file}:echo" if name == "agent" else file
        told = home.spear("deploy", target, "--name", name)
        assert told.status == 0, told.err
    return node


def invoke(home: Any, *args: str, stdin: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """``spear invoke --stream``, left running."""
    process = subprocess.Popen(
        [SPEAR, "invoke", "--stream", *args],
        cwd=home.folder,
        env=home.environ(),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    home.processes.append(process)
    return process


def memory(pid: int) -> dict[int, int]:
    """Resident bytes of a process and all below it."""
    found = {}
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            found[process.pid] = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_flat_however_much_goes_through(home: Any, node: Any, kind: str) -> None:
    warm = home.spear("invoke", kind, "--stream", "--input", "warm")
    assert (warm.status, warm.out) == (0, "warm"), warm.err
    source = subprocess.Popen(["head", "-c", str(MUCH), "/dev/zero"], stdout=subprocess.PIPE)
    home.processes.append(source)
    client = invoke(home, kind, stdin=source.stdout)
    assert client.stdout is not None
    assert os.read(client.stdout.fileno(), 1) == b"\0"
    first = memory(node.process.pid)
    most = dict(first)
    own = memory(client.pid)[client.pid]
    received, looks = 1, 0
    time.sleep(1)  # nobody reads
    while piece := os.read(client.stdout.fileno(), 1 << 16):
        received += len(piece)
        if received // (10 << 20) > looks:
            looks += 1
            for pid, size in memory(node.process.pid).items():
                most[pid] = max(size, most.get(pid, 0))
            own_now = memory(client.pid)[client.pid] if client.poll() is None else own
            assert own_now < own + ROOM
            time.sleep(0.01)
    assert client.wait(60) == 0, client.stderr and client.stderr.read()
    assert received == MUCH
    assert looks > 40
    grown = {pid: size - first.get(pid, 0) for pid, size in most.items() if pid in first}
    assert max(grown.values()) < ROOM, grown


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_is_killed_takes_its_guest_along(home: Any, node: Any, kind: str) -> None:
    client = invoke(home, kind)
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(b"x")
    client.stdin.flush()
    assert client.stdout.read(1) == b"x"
    guests = [p for p in node.below() if p.name() == "cat"]
    assert len(guests) == (kind == "command")
    (task,) = [t for t in node.listed("ps") if t["state"] == "running"]
    client.send_signal(signal.SIGKILL)
    told = home.spear("result", task["task_id"], "--wait", "--json")
    assert '"cancelled"' in told.out
    assert home.gone(guests)
    assert [i for i in node.listed("instances") if i["state"] == "running"] == []


def test_a_reader_that_goes_away_ends_the_call(home: Any, node: Any) -> None:
    client = invoke(home, "agent:flood", stdin=subprocess.DEVNULL)
    assert client.stdout is not None
    assert client.stdout.read(100_000)
    client.stdout.close()
    assert client.wait(60) == 141
    (task,) = [t for t in node.listed("ps") if t["function"].endswith(":flood")]
    assert task["state"] == "cancelled"
    assert "the flood is over" in home.spear("logs", task["task_id"]).out


def test_an_interrupt_cancels_the_task(home: Any, node: Any) -> None:
    client = invoke(home, "command")
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(b"x")
    client.stdin.flush()
    assert client.stdout.read(1) == b"x"
    client.send_signal(signal.SIGINT)
    assert client.wait(60) == 130
    (task,) = [t for t in node.listed("ps") if t["function"].startswith("command@")]
    assert task["state"] == "cancelled"


def test_a_failure_in_the_middle_comes_after_what_was_sent(home: Any, node: Any) -> None:
    told = home.spear("invoke", "agent:three", "--stream", "--input", "today")
    assert told.status == 1
    assert told.out == "chunk 0\nchunk 1\nchunk 2\n"
    assert "no more today" in told.err
    assert "Traceback" not in told.err
    task_id = told.err.rpartition("spear logs ")[2].strip()
    logged = home.spear("logs", task_id).out
    assert "raise ValueError" in logged


def test_run_streams_without_a_node(home: Any) -> None:
    (home.folder / "cat.sh").write_text(FILES["cat.sh"])
    told = home.spear("run", "cat.sh", "--stream", stdin=b"a\nb\n")
    assert (told.status, told.out) == (0, "a\nb\n"), told.err


@pytest.mark.parametrize("other", ["--async", "--detach", "--json"])
def test_stream_does_not_mix(home: Any, other: str) -> None:
    told = home.spear("invoke", "x", "--stream", other)
    assert told.status == 2
    assert "--stream goes with none of" in told.err
