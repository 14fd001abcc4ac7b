"""Objects on a real node, whose agents die, whose disk is full, whose files are damaged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from spear_core.client import sync
from spear_core.errors import StoreFullError

SPEAR = str(Path(sys.executable).with_name("spear"))
LARGE = 4 << 20
STORES = {
    "memory": '[stores]\nobjects = "memory"\nmetadata = "memory"\n',
    "lmdb": '[stores]\nobjects = "lmdb"\nmetadata = "lmdb"\n',
}
HOLDER = """
import time

from spear_sdk import Context, function


@function
def hold(data: bytes, ctx: Context) -> str:
    found = ctx.objects.get("mapped")
    ctx.objects.add_ref("mapped")
    with ctx.objects.create("unfinished") as writer, ctx.objects.open("mapped") as reader:
        writer.write(memoryview(found)[: 1 << 20])
        reader.read(10)
        ctx.log.info("it has it")
        time.sleep(600)
    return ""
"""
SMALL_STORE = """
set -e
mkdir -p "$SPEAR_STATE_DIR/plugins/store-lmdb/objects"
mount -t tmpfs -o size=16m none "$SPEAR_STATE_DIR/plugins/store-lmdb/objects"
exec "$@"
"""


@pytest.fixture
def start(home: Any) -> Callable[..., Any]:
    def start(store: str, **options: Any) -> Any:
        (home.folder / "config.toml").write_text(STORES[store])
        return home.node("--config", "config.toml", **options)

    return start


def put(home: Any, key: str, value: bytes, *options: str) -> Any:
    return home.spear("objects", "put", key, "-", *options, stdin=value)


def usage(home: Any) -> tuple[int, int]:
    """How many objects, and how many bytes."""
    with sync.connect(state_dir=home.state) as client:
        found = client.objects.usage()
    return found.objects, found.bytes


def holders(home: Any, key: str) -> list[str]:
    with sync.connect(state_dir=home.state) as client:
        return sorted(holder.name for holder in client.objects.holders(key))


def held_files(node: Any) -> list[str]:
    """What the node has open or mapped of values: memory, or files without a name."""
    found = []
    for kind in ("fd", "map_files"):
        for link in Path(f"/proc/{node.process.pid}/{kind}").iterdir():
            with suppress(OSError):
                found.append(os.readlink(link))
    return [name for name in found if re.search(r"memfd:|/blobs/", name)]


@pytest.mark.parametrize("store", STORES)
def test_an_agent_that_is_killed_while_it_maps_an_object(home: Any, start: Any, store: str) -> None:
    """Nothing of what it held, read or wrote is left: no reference, no half object, no file."""
    node = start(store)
    (home.folder / "holder.py").write_text(HOLDER)
    assert home.spear("deploy", "holder.py").status == 0
    assert put(home, "holder/mapped", bytes(LARGE)).status == 0
    assert home.spear("objects", "ref", "holder/mapped", "--holder", "me").status == 0
    assert usage(home) == (1, LARGE)
    task = home.spear("invoke", "holder:hold", "--input", "", "--async").out.strip()

    def has_it() -> bool:
        log = home.spear("logs", task).out
        assert "error:" not in log, log
        return "it has it" in log

    home.wait_until(has_it, "the agent has it")
    assert f"\ntask/{task} " in home.spear("objects", "holders", "holder/mapped").out
    assert holders(home, "holder/mapped") == ["me", f"task/{task}"]
    assert usage(home) == (1, LARGE + (1 << 20)), "what is being written counts"
    psutil.Process(node.running_instance("holder@1")["pid"]).kill()
    told = home.spear("result", task, "--wait")
    assert (told.status, told.out) != (0, "")
    home.wait_until(lambda: holders(home, "holder/mapped") == ["me"], "its reference is gone")
    home.wait_until(lambda: usage(home) == (1, LARGE), "what it wrote is gone")
    assert "collected" in home.spear("objects", "unref", "holder/mapped", "--holder", "me").out
    assert usage(home) == (0, 0)
    home.wait_until(lambda: not held_files(node), "the node holds nothing of it")


@pytest.mark.parametrize("store", STORES)
def test_what_has_a_time_to_live_is_gone_after_it(home: Any, start: Any, store: str) -> None:
    start(store)
    assert put(home, "a/short", bytes(LARGE), "--ttl", "1s").status == 0
    assert put(home, "a/long", b"1", "--ttl", "1h").status == 0
    stat = json.loads(home.spear("objects", "stat", "a/long", "--json").out)
    assert 3590 < stat["expires_at"] - stat["updated_at"] < 3610
    home.wait_until(lambda: usage(home) == (1, 1), "it is collected")
    assert home.spear("objects", "stat", "a/short").status == 3


def put_until_it_is_full(client: sync.Node) -> list[str]:
    """Small values, each in a commit; the keys of those that were taken."""
    written: list[str] = []
    for number in range(100):
        try:
            client.objects.put(f"a/{number:03}", os.urandom(60_000))
        except StoreFullError:
            return written
        written.append(f"a/{number:03}")
    raise AssertionError("there was always room")


def test_a_disk_that_is_full_in_the_middle_of_a_put_and_of_a_commit(
    home: Any, start: Any, mounts: str
) -> None:
    """A real one of 16 MiB: large values fill it with their files, small ones with commits."""
    node = start("lmdb", wrapper=f"exec {mounts} sh -c '{SMALL_STORE}' sh \"$@\"")
    assert put(home, "a/kept", b"kept").status == 0
    (home.folder / "file").write_bytes(bytes(20 << 20))
    for source, value in (("file", b""), ("-", bytes(20 << 20))):  # with its size, and without
        told = home.spear("objects", "put", "a/large", source, stdin=value)
        assert (told.status, told.out) == (5, ""), told.err
        assert "no room left" in told.err
        assert "Traceback" not in told.err
        home.wait_until(lambda: usage(home) == (1, 4), "what was written is gone")
    folder = Path(f"/proc/{node.process.pid}/root{home.state}/plugins/store-lmdb/objects")
    filler = folder / "filler"
    filler.write_bytes(bytes(14 << 20))  # so that a few commits find it full
    with sync.connect(state_dir=home.state) as client:
        written = put_until_it_is_full(client)
        assert [o.key for o in client.objects.list().objects] == [*written, "a/kept"]
        assert client.objects.usage().bytes == 60_000 * len(written) + 4
    assert home.spear("objects", "get", "a/kept").out == "kept"
    filler.unlink()
    assert put(home, "a/large", bytes(LARGE)).status == 0
    assert node.stop() == 0


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def flip(path: Path) -> None:
    """A bit in the magic number of both of LMDB's first pages."""
    harmed = bytearray(path.read_bytes())
    for page in (0, 4096):
        harmed[page + 16] ^= 1
    path.write_bytes(harmed)


def replace(path: Path) -> None:
    path.write_bytes(b"somebody's letters\n" * 10_000)


HARMS = (cut, flip, replace)


@pytest.fixture
def state(home: Any, start: Any) -> Path:
    """The folder of the stores of a node that has stopped, with something in each."""
    node = start("lmdb")
    with sync.connect(state_dir=home.state) as client:
        for number in range(10):
            client.objects.put(f"a/{number}", bytes(50_000))
    assert node.stop() == 0
    folder: Path = home.state / "plugins" / "store-lmdb"
    return folder


def test_a_node_with_damaged_metadata_does_not_start(home: Any, state: Path) -> None:
    data = state / "metadata" / "data.mdb"
    sound = data.read_bytes()
    for harm in HARMS:
        harm(data)
        harmed = data.read_bytes()
        told = home.spear("node", "--config", "config.toml")
        assert told.status == 7, told.err
        assert f"{data} is damaged" in told.err
        assert "restore a backup" in told.err
        assert "Traceback" not in told.err
        assert data.read_bytes() == harmed, "it is left alone"
        data.write_bytes(sound)
    home.node("--config", "config.toml")
    assert usage(home) == (10, 500_000)


def test_a_node_with_damaged_objects_says_so_and_goes_on_without(
    home: Any, start: Any, state: Path
) -> None:
    data = state / "objects" / "data.mdb"
    sound = data.read_bytes()
    for harm in HARMS:
        harm(data)
        harmed = data.read_bytes()
        node = start("lmdb")
        home.wait_until(lambda: str(data) in node.log.read_text(), "its log has it")  # noqa: B023
        for command in (["ls"], ["put", "a/0", "config.toml"]):
            told = home.spear("objects", *command)
            assert (told.status, told.out) == (7, "")
            assert f"{data} is damaged" in told.err
            assert "restore a backup" in told.err
        assert home.spear("ps").status == 0
        assert node.stop() == 0
        assert data.read_bytes() == harmed, "it is left alone"
        data.write_bytes(sound)
    start("lmdb")
    assert usage(home) == (10, 500_000)


def test_a_value_whose_file_has_a_flipped_bit_is_never_taken_for_whole(
    home: Any, start: Any
) -> None:
    node = start("lmdb")
    assert put(home, "a/x", bytes(LARGE)).status == 0
    assert node.stop() == 0
    (blob,) = (home.state / "plugins" / "store-lmdb" / "objects" / "blobs").iterdir()
    mode = blob.stat().st_mode
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(LARGE // 2)
        file.write(b"\1")
    blob.chmod(mode)
    told = home.spear("fsck")
    assert (told.status, "object 'a/x'" in told.out) == (7, True)
    start("lmdb")
    told = home.spear("objects", "get", "a/x", "-o", "copy")
    assert (told.status, "sha256" in told.err) == (7, True), told.err
    assert not list(home.folder.glob("*copy*"))


def test_of_nodes_that_start_at_once_on_one_directory_one_serves(home: Any, start: Any) -> None:
    start("memory").stop()  # so that there is a directory, and no lock but the node's own
    command = [SPEAR, "node", "--config", "config.toml"]
    nodes = []
    for _ in range(4):
        process = subprocess.Popen(
            command,
            cwd=home.folder,
            env=home.environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        home.processes.append(process)
        nodes.append(process)
    said = [process.stdout.readline() for process in nodes]
    (serving,) = [process for process, line in zip(nodes, said, strict=True) if line]
    assert put(home, "a/x", b"1").status == 0
    for process in nodes:
        if process is not serving:
            _, err = process.communicate(timeout=60)
            assert process.returncode == 6
            assert b"state" in err
            assert b"Traceback" not in err
    assert home.spear("objects", "get", "a/x").out == "1"
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(60) == 0
