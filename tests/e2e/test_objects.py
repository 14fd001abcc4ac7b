"""Objects through a real node with the real command line: large values, sudden ends, full stores,
many writers."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SPEAR = str(Path(sys.executable).with_name("spear"))
MUCH = 40_000_000
STORES = {
    "memory": '[stores]\nobjects = "memory"\nmetadata = "memory"\n',
    "lmdb": '[stores]\nobjects = "lmdb"\nmetadata = "lmdb"\n',
}
INCREMENTS = int(os.environ.get("SPEAR_TEST_INCREMENTS", "300"))
"""Of each of eight processes; 20,000 in ``nox -s endurance``."""
INCREMENT = """
import sys
from pathlib import Path

import trio

from spear_core.client import connect
from spear_core.errors import ObjectConflictError


async def main(state: str, count: int) -> None:
    async with connect(state_dir=Path(state)) as node:
        value = version = 0
        for _ in range(count):
            while True:
                try:
                    new = b"%d" % (value + 1)
                    stat = await node.objects.put("shared/count", new, expect=version, hashed=False)
                except ObjectConflictError:
                    found = await node.objects.get("shared/count")
                    value, version = int(found.data), found.stat.version
                else:
                    value, version = value + 1, stat.version
                    break


trio.run(main, sys.argv[1], int(sys.argv[2]))
"""
FUNCTIONS = """
from spear_sdk import Context, function


@function
def size(data: bytes) -> str:
    return str(len(data))


@function
def fill(count: str) -> bytes:
    return b"x" * int(count)


@function
def relay(count: str, ctx: Context) -> str:
    return str(len(ctx.invoke("f:fill", count)))


@function
def pass_on(key: str, ctx: Context) -> str:
    return str(ctx.invoke("f:size", input_object=key))
"""


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(home: Any) -> Any:
    """Starts a node with these settings."""

    def start_it(config: str) -> Any:
        path = home.folder / "config.toml"
        path.write_text(config)
        return home.node("--config", str(path))

    return start_it


@pytest.fixture
def big(home: Any) -> Path:
    path: Path = home.folder / "big"
    path.write_bytes(random.Random(1).randbytes(MUCH))
    return path


def spear(home: Any, *args: str, **options: Any) -> str:
    """What it printed; it worked."""
    told = home.spear("objects", *args, **options)
    assert told.status == 0, told.err
    return str(told.out)


def usage(home: Any) -> dict[str, int]:
    found: dict[str, int] = json.loads(spear(home, "df", "--json"))
    return found


def feed(home: Any, *args: str) -> subprocess.Popen[bytes]:
    """Start a command whose stdin and stdout the test has."""
    process = subprocess.Popen(
        [SPEAR, "objects", *args],
        cwd=home.folder,
        env=home.environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what has been read by hand must not take along what comes after it
    )
    home.processes.append(process)
    return process


def begin_put(home: Any, *args: str) -> subprocess.Popen[bytes]:
    """A put that has sent some of its value and goes on for as long as its stdin is open."""
    putting = feed(home, "put", "a/x", "-", *args)
    assert putting.stdin is not None
    putting.stdin.write(bytes(1_000_000))
    putting.stdin.flush()
    home.wait_until(lambda: usage(home)["bytes"] > 0, "the node has some of the value")
    return putting


def nothing_is_left(home: Any) -> bool:
    found = usage(home)
    return found["objects"] == 0 and found["bytes"] == 0


def test_everything_that_can_be_done_with_an_object(home: Any, start: Any, big: Path) -> None:
    start(STORES["lmdb"])
    assert spear(home, "put", "a/big", "big") == "a/big is version 1\n"
    assert spear(home, "get", "a/big", "-o", "copy") == ""
    assert (home.folder / "copy").read_bytes() == big.read_bytes()
    got = subprocess.run(
        [SPEAR, "objects", "get", "a/big"], env=home.environ(), capture_output=True, check=True
    )
    assert (got.stdout == big.read_bytes(), got.stderr) == (True, b"")
    assert spear(home, "put", "a/text.txt", "-", "--ttl", "1h", stdin=b"one") != ""
    refused = home.spear("objects", "put", "a/text.txt", "-", "--expect", "0", stdin=b"two")
    assert (refused.status, "version 1" in refused.err) == (6, True)
    assert spear(home, "put", "a/text.txt", "-", "--expect", "1", stdin=b"two") != ""
    stat = json.loads(spear(home, "stat", "a/text.txt", "--json"))
    assert (stat["version"], stat["size"], stat["expires_at"]) == (2, 3, None)
    digest = stat["sha256"]
    assert home.spear("objects", "rm", "a/text.txt", "--expect", "0" * 64).status == 6
    assert "three" not in spear(home, "put", "a/text.txt", "-", "--expect", digest, stdin=b"three")
    listed = json.loads(spear(home, "ls", "a/", "--json"))
    assert [(o["key"], o["size"]) for o in listed] == [("a/big", MUCH), ("a/text.txt", 5)]
    assert spear(home, "ls", "-n", "1").splitlines()[1].split()[:2] == ["a/big", "38"]
    assert "1 reference" in spear(home, "ref", "a/text.txt", "--holder", "me")
    assert "me" in spear(home, "holders", "a/text.txt")
    assert "pinned" in spear(home, "pin", "a/text.txt")
    assert "0 references" in spear(home, "unref", "a/text.txt", "--holder", "me")
    assert "collected" in spear(home, "unpin", "a/text.txt")
    assert home.spear("objects", "stat", "a/text.txt").status == 3
    assert spear(home, "rm", "a/big") == "deleted a/big\n"
    assert nothing_is_left(home)


def test_an_object_that_is_deleted_while_it_is_sent_arrives_whole(
    home: Any, start: Any, store: str, big: Path
) -> None:
    start(STORES[store])
    spear(home, "put", "a/x", "big")
    getting = feed(home, "get", "a/x")
    assert getting.stdout is not None
    first = getting.stdout.read(1000)
    spear(home, "rm", "a/x")
    assert home.spear("objects", "stat", "a/x").status == 3
    rest, err = getting.communicate(timeout=60)
    assert (getting.returncode, err) == (0, b"")
    assert first + rest == big.read_bytes()
    home.wait_until(lambda: nothing_is_left(home), "the deleted version is collected")


@pytest.mark.parametrize(
    ("store", "number"),
    [("memory", signal.SIGINT), ("lmdb", signal.SIGTERM), ("lmdb", signal.SIGKILL)],
)
def test_a_put_that_is_ended_leaves_the_object_as_it_was(
    home: Any, start: Any, store: str, number: int
) -> None:
    start(STORES[store])
    putting = begin_put(home)
    putting.send_signal(number)
    putting.wait(60)  # with its stdin open: an end of that would be a put like any other
    _, err = putting.communicate(timeout=60)
    assert putting.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert (b"nothing was written" in err) is (number != signal.SIGKILL)
    home.wait_until(lambda: nothing_is_left(home), "what was sent is gone")


def test_a_store_that_is_full_in_mid_stream_says_so_and_keeps_what_it_has(
    home: Any, start: Any, store: str, big: Path
) -> None:
    limits = {
        "memory": "[plugins.builtins]\nmemory_store_bytes = 20_000_000\n",
        "lmdb": "[plugins.store-lmdb]\nobjects_bytes = 20_000_000\n",
    }
    start(STORES[store] + limits[store])
    spear(home, "put", "a/kept", "-", stdin=b"kept")
    told = home.spear("objects", "put", "a/x", "-", stdin=big.read_bytes())
    assert (told.status, "20000000" in told.err) == (5, True), told.err
    told = home.spear("objects", "put", "a/x", "big")
    assert (told.status, "20000000" in told.err) == (5, True), told.err
    assert usage(home) == {"objects": 1, "bytes": 4, "limit_bytes": 20_000_000}
    assert spear(home, "get", "a/kept") == "kept"


def get(
    home: Any, *args: str, most: int = resource.RLIM_INFINITY
) -> subprocess.CompletedProcess[bytes]:
    """A limit on the size of files stands for whatever cuts it off."""
    return subprocess.run(
        [SPEAR, "objects", "get", "a/x", "-o", "copy", *args],
        cwd=home.folder,
        env=home.environ(),
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )


def parts(home: Any) -> list[Path]:
    return list(home.folder.glob(".copy.*"))


def test_a_get_that_is_cut_off_leaves_no_half_file_and_can_be_resumed(
    home: Any, start: Any, big: Path
) -> None:
    start(STORES["lmdb"])
    spear(home, "put", "a/x", "big")
    (home.folder / "copy").write_text("before")
    cut = get(home, most=MUCH // 3)
    assert (cut.returncode, b"copy cannot be written: " in cut.stderr) == (7, True)
    assert b"with --resume what has come would be" in cut.stderr
    assert ((home.folder / "copy").read_text(), parts(home)) == ("before", [])
    cut = get(home, "--resume", most=MUCH // 3)
    assert (cut.returncode, b"what has come is kept" in cut.stderr) == (7, True)
    (part,) = parts(home)
    assert 0 < part.stat().st_size <= MUCH // 3
    assert (home.folder / "copy").read_text() == "before"
    assert get(home, "--resume", most=MUCH // 2).returncode == 7
    size = part.stat().st_size
    assert MUCH // 3 < size <= MUCH // 2
    done = get(home, "--resume")
    assert (done.returncode, f"after {size} bytes".encode() in done.stderr) == (0, True)
    assert ((home.folder / "copy").read_bytes() == big.read_bytes(), parts(home)) == (True, [])


def test_a_part_of_another_version_and_a_damaged_part_are_not_taken(
    home: Any, start: Any, big: Path
) -> None:
    start(STORES["memory"])
    spear(home, "put", "a/x", "big")
    assert get(home, "--resume", most=MUCH // 3).returncode == 7
    spear(home, "put", "a/x", "-", stdin=big.read_bytes()[::-1])
    told = get(home, "--resume", most=MUCH // 3)
    assert (told.returncode, b"changed" in told.stderr) == (7, True)
    (part,) = parts(home)
    part.write_bytes(bytes(part.stat().st_size))
    told = get(home, "--resume")
    assert (told.returncode, b"sha256" in told.stderr) == (7, True)
    assert parts(home) == []


def test_a_node_that_is_killed_in_mid_put_and_mid_get(home: Any, start: Any, big: Path) -> None:
    node = start(STORES["lmdb"])
    spear(home, "put", "a/kept", "big")
    before = usage(home)
    putting, getting = feed(home, "put", "a/x", "-"), feed(home, "get", "a/kept")
    assert putting.stdin is not None
    assert getting.stdout is not None
    putting.stdin.write(bytes(10_000_000))
    putting.stdin.flush()
    home.wait_until(lambda: usage(home)["bytes"] > before["bytes"], "the node has some of it")
    first = getting.stdout.read(1000)
    node.process.kill()
    node.process.wait(60)
    rest, err = getting.communicate(timeout=60)
    assert (getting.returncode, b"went away" in err) == (4, True), err
    assert len(first + rest) < MUCH
    putting.wait(60)  # though it has heard nothing of the end of its stdin
    _, err = putting.communicate(timeout=60)
    assert (putting.returncode, b"went away" in err) == (4, True), err
    start(STORES["lmdb"])
    assert usage(home) == before
    spear(home, "get", "a/kept", "-o", "copy")
    assert (home.folder / "copy").read_bytes() == big.read_bytes()


def test_inputs_and_outputs_that_are_objects(home: Any, start: Any, big: Path) -> None:
    start(STORES["lmdb"])
    (home.folder / "f.py").write_text(FUNCTIONS)
    assert home.spear("deploy", "f.py").status == 0
    spear(home, "put", "a/in", "big")
    told = home.spear("invoke", "f:size", "--input-object", "a/in")
    assert (told.status, told.out) == (0, str(MUCH)), told.err
    assert home.spear("invoke", "f:size", "--input-object", "a/none").status == 3
    refused = home.spear("invoke", "f:pass_on", "--input", "/a/in")
    assert (refused.status, "f may not read" in refused.err) == (1, True), refused.err
    spear(home, "put", "f/own", "-", stdin=b"12345")
    assert home.spear("invoke", "f:pass_on", "--input", "own").out == "5"
    both = home.spear("invoke", "f:size", "--input-object", "a/in", "--input", "x")
    assert both.status == 2
    told = home.spear("invoke", "f:fill", "--input", str(3 << 20))
    assert (told.status, told.out == "x" * (3 << 20)) == (0, True)
    assert home.spear("invoke", "f:relay", "--input", str(3 << 20)).out == str(3 << 20)
    task = json.loads(home.spear("invoke", "f:fill", "--json", "--input", str(2 << 20)).out)
    assert task["result"]["output"] == "x" * (2 << 20)
    key = task["result"]["object_key"]
    assert home.spear("result", task["task_id"]).out == "x" * (2 << 20)
    assert spear(home, "get", key) == "x" * (2 << 20)
    assert home.spear("objects", "rm", key).status == 6
    assert key in spear(home, "ls", ".")
    assert key not in spear(home, "ls")


def test_a_large_result_outlives_its_node(home: Any, start: Any) -> None:
    node = start(STORES["lmdb"])
    (home.folder / "f.py").write_text(FUNCTIONS)
    assert home.spear("deploy", "f.py").status == 0
    task_id = home.spear("invoke", "f:fill", "--input", str(3 << 20), "--async").out.strip()
    assert home.spear("result", task_id, "--wait").out == "x" * (3 << 20)
    node.process.kill()
    node.process.wait(60)
    start(STORES["lmdb"])
    assert home.spear("result", task_id).out == "x" * (3 << 20)
    assert [o["key"] for o in json.loads(spear(home, "ls", ".spear/", "--json"))] == [
        f".spear/results/{task_id}"
    ]


def test_no_increment_of_eight_processes_is_lost(home: Any, start: Any, store: str) -> None:
    start(STORES[store])
    script = home.folder / "increment.py"
    script.write_text(INCREMENT)
    spear(home, "put", "shared/count", "-", stdin=b"0")
    command = [sys.executable, str(script), str(home.state), str(INCREMENTS)]
    processes = [subprocess.Popen(command, env=home.environ()) for _ in range(8)]
    home.processes.extend(processes)
    assert [process.wait(3600) for process in processes] == [0] * 8
    assert spear(home, "get", "shared/count") == str(8 * INCREMENTS)
    stat = json.loads(spear(home, "stat", "shared/count", "--json"))
    assert stat["version"] == 8 * INCREMENTS + 1
