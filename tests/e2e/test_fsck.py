"""``spear fsck``: each kind of damage is found by name, and what can be mended is."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import lmdb
import pytest
import trio

from spear_core.api import ArtifactUpload, ExecutionMode, InvokeRequest, MetadataStore, ObjectStore
from spear_core.builtins.local_socket import connect
from spear_core.cli._listing import plain
from spear_core.cli.commands.fsck import exit_status
from spear_core.config import NodeSettings, load_config
from spear_core.node._fsck import check_state
from spear_core.node._task_records import Place, decode_task, encode_task
from spear_core.node.paths import StatePaths
from spear_core.plugins import Plugins, load_plugins
from spear_core.testing import make_context
from spear_store_lmdb import (
    LmdbMetadataConfig,
    LmdbObjectsConfig,
    open_lmdb_metadata,
    open_lmdb_objects,
)

SPEAR = str(Path(sys.executable).with_name("spear"))
WORK = """
from spear_sdk import function


@function
def work(text: str) -> str:
    return "." * int(text)
"""
SMALL, LARGE, HUGE = 100, 100_000, 400_000
CONFIG = "[execution]\ninline_output_bytes = 200000\n"
VALUE = b"an object that is easy to find in a file"


@attrs.frozen
class State:
    """The state directory of a stopped node."""

    folder: Path
    tasks: dict[int, str]
    """Size of the output → task."""

    @property
    def root(self) -> Path:
        return self.folder / "state"

    @property
    def store(self) -> Path:
        return self.root / "plugins" / "store-lmdb"

    @property
    def blob(self) -> Path:
        """The file of the object ``my/large``."""
        return next(p for p in self.store.glob("objects/blobs/*") if p.stat().st_size == LARGE + 1)

    @property
    def code(self) -> Path:
        return next(self.root.glob("artifacts/code/*/work.py"))

    def fsck(self, *options: str) -> tuple[int, list[dict[str, Any]], list[str]]:
        """Exit status, problems, and what could not be checked; in this process, for speed."""
        check = functools.partial(
            check_state,
            *installed(),
            StatePaths(self.root),
            repair="--repair" in options,
            remove_damaged="--remove-damaged" in options,
            tell=lambda text: None,
        )
        report = trio.run(check)
        found = plain(report)
        return exit_status(report), found["problems"], found["unchecked"]

    def spear(self, *args: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "HOME": str(self.folder), "SPEAR_STATE_DIR": str(self.root)}
        return subprocess.run(
            [SPEAR, *args],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def with_objects(self, work: Callable[[ObjectStore], Awaitable[object]]) -> None:
        context = attrs.evolve(make_context(self.folder), state_dir=self.store)

        async def run() -> None:
            async with open_lmdb_objects(context, LmdbObjectsConfig()) as store:
                await work(store)

        trio.run(run)

    def with_metadata(self, work: Callable[[MetadataStore], Awaitable[object]]) -> None:
        context = attrs.evolve(make_context(self.folder), state_dir=self.store)

        async def run() -> None:
            async with open_lmdb_metadata(context, LmdbMetadataConfig()) as store:
                await work(store)

        trio.run(run)


@functools.cache
def installed() -> tuple[NodeSettings, Plugins]:
    plugins = load_plugins(None)
    return load_config(None, plugins), plugins


async def fill(url: str, tasks: dict[int, str]) -> None:
    async with connect(url) as api:
        await api.deploy(
            ArtifactUpload(name="work", filename="work.py", content=WORK.encode(), entry="work")
        )
        for size in (SMALL, LARGE, HUGE):
            request = InvokeRequest(
                function="work",
                payload=b"%d" % size,
                mode=ExecutionMode.ASYNC,
                idempotency_key=f"key {size}",
            )
            tasks[size] = (await api.invoke(request)).task.task_id
            await api.get_task(tasks[size], wait=True)
        await api.objects.put("my/small", VALUE)
        await api.objects.put("my/large", bytes(LARGE + 1))
        await api.objects.add_ref("my/large", holder="me")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> State:
    """Made once; each test gets a copy."""
    state = State(tmp_path_factory.mktemp("made"), {})
    (state.folder / "node.toml").write_text(CONFIG)
    environ = {**os.environ, "HOME": str(state.folder), "SPEAR_STATE_DIR": str(state.root)}
    with (state.folder / "node.err").open("wb") as stderr:
        node = subprocess.Popen(
            [SPEAR, "node", "--config", "node.toml"],
            cwd=state.folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        assert node.stdout is not None
        assert node.stdout.readline().startswith(b"ready"), (state.folder / "node.err").read_text()
        trio.run(fill, f"unix://{state.root}/node.sock", state.tasks)
        node.terminate()
        assert node.wait(60) == 0
    finally:
        node.kill()
        node.communicate()
    return state


@pytest.fixture
def state(made: State, tmp_path: Path) -> State:
    shutil.copytree(made.root, tmp_path / "state", symlinks=True)
    return State(tmp_path, made.tasks)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def flip_within(path: Path, text: bytes) -> None:
    """In every place: some may be in pages that are free."""
    content = path.read_bytes()
    assert text in content
    path.write_bytes(content.replace(text, text[:-1] + bytes([text[-1] ^ 1])))


def cut(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def test_a_stopped_node_is_sound(state: State) -> None:
    told = state.spear("fsck")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.endswith("of values)\n")
    assert ": no problems (" in told.stdout
    assert state.fsck("--repair") == (0, [], [])


async def _change(store: MetadataStore, key: bytes, **fields: Any) -> None:
    """Change a task's record."""
    import msgspec

    item = await store.get(key)
    assert item is not None
    record = decode_task(key, item.value)
    await store.put(key, encode_task(msgspec.structs.replace(record, **fields)))


def orphan(state: State) -> None:
    (state.store / "objects" / "blobs" / ("ab" * 16)).write_bytes(b"left by a crash")


def input_of_nobody(state: State) -> None:
    state.with_metadata(lambda store: store.put(b"inputs/t-gone", b"input"))


def version_without_name(state: State) -> None:
    state.with_metadata(lambda store: store.put(b"versions/ghost/000000001", b"\x80"))


def result_is_not_held(state: State) -> None:
    task = state.tasks[HUGE]

    async def work(store: ObjectStore) -> None:
        await store.add_ref(f".spear/results/{task}", holder="x")
        await store.release(f"task/{task}/result")

    state.with_objects(work)


def identity(state: State) -> None:
    (state.root / "node.id").write_text("n-somebody-else\n")


MENDED: dict[str, tuple[Callable[[State], object], str]] = {
    "a file of no object": (orphan, "the file " + "ab" * 16),
    "an input of no task": (input_of_nobody, "the input of task t-gone"),
    "a version without a name": (version_without_name, "version 000000001 of artifact 'ghost'"),
    "another identity": (identity, "node.id"),
    "a result that nobody holds": (result_is_not_held, "does not hold its result"),
}


@pytest.mark.parametrize("name", MENDED)
def test_what_can_be_mended(state: State, name: str) -> None:
    harm, expected = MENDED[name]
    harm(state)
    status, problems, unchecked = state.fsck()
    assert (status, unchecked) == (1, []), problems
    assert expected in f"{problems[0]['where']}: {problems[0]['what']}"
    assert not problems[0]["lost"]
    assert state.fsck()[:2] == (1, problems), "it has changed nothing"
    status, mended, _ = state.fsck("--repair")
    assert status == 0, mended
    assert [each["where"] for each in mended] == [each["where"] for each in problems]
    assert all(each["repaired"] for each in mended)
    status, left, _ = state.fsck()
    assert status == 0
    assert all(each["expected"] for each in left)


def leftovers(state: State) -> None:
    async def work(store: ObjectStore) -> None:
        await store.put(".tasks/t-gone/input", b"x")
        await store.put(".spear/results/t-gone", b"x")
        await store.add_ref("my/small", holder="task/t-gone")
        await store.add_ref("my/small", holder="somebody")

    state.with_objects(work)
    (state.root / "artifacts" / "code" / ("0" * 64)).mkdir()


def test_what_the_next_start_removes_is_no_problem(state: State) -> None:
    leftovers(state)
    status, problems, _ = state.fsck()
    assert status == 0
    assert all(each["expected"] and not each["lost"] for each in problems)
    found = " ".join(f"{each['where']} {each['what']}" for each in problems)
    for expected in (".tasks/t-gone/input", ".spear/results/t-gone", "'task/t-gone'", "0" * 64):
        assert expected in found
    assert len(problems) == 4
    told = state.spear("fsck", "--repair")
    assert (told.returncode, told.stdout.count("; put right\n")) == (0, 4), told.stdout
    assert state.fsck() == (0, [], [])


def test_the_door_of_a_killed_node_is_no_problem(state: State) -> None:
    """Such as that of gRPC, whose name the configuration says."""
    root = os.open(state.root, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"/proc/self/fd/{root}/grpc.sock")  # the path itself may be too long
    os.close(root)
    for options in ([], ["--repair"]):
        status, problems, _ = state.fsck(*options)
        assert (status, [each["where"] for each in problems]) == (
            0,
            [f"the socket {state.root / 'grpc.sock'}"],
        )


def lose_object(key: str) -> Callable[[State], object]:
    def harm(state: State) -> None:
        named = key.format(**{f"t{size}": task for size, task in state.tasks.items()})
        state.with_objects(lambda store: store.delete(named))

    return harm


def lose_output(state: State) -> None:
    key = b"outputs/" + state.tasks[SMALL].encode()
    state.with_metadata(lambda store: store.delete(key))


def other_result(state: State) -> None:
    key = f".spear/results/{state.tasks[HUGE]}"
    state.with_objects(lambda store: store.put(key, b"short"))


def break_record(value: bytes) -> Callable[[State], object]:
    def harm(state: State) -> None:
        key = b"tasks/" + state.tasks[SMALL].encode()
        state.with_metadata(lambda store: store.put(key, value))

    return harm


def lose_input(state: State) -> None:
    from spear_core.api import TaskState

    key = b"tasks/" + state.tasks[SMALL].encode()
    state.with_metadata(
        lambda store: _change(store, key, state=TaskState.PENDING, input=Place.OBJECT)
    )


def foreign_database(state: State) -> None:
    path = state.store / "objects" / "data.mdb"
    path.unlink()
    shutil.copy(state.store / "metadata" / "data.mdb", path)


LOST: dict[str, tuple[Callable[[State], object], str]] = {
    "a bit in a file": (lambda s: flip(s.blob, 999), "object 'my/large': its file"),
    "a file cut off": (lambda s: cut(s.blob), "object 'my/large'"),
    "a file missing": (lambda s: s.blob.unlink(), "object 'my/large'"),
    "a bit in an object's record": (
        lambda s: flip_within(s.store / "objects" / "data.mdb", VALUE),
        "object 'my/small': its record is damaged",
    ),
    "a bit in a task's record": (
        lambda s: flip_within(s.store / "metadata" / "data.mdb", b"key 400000"),
        "metadata key",
    ),
    "objects cut off": (lambda s: cut(s.store / "objects" / "data.mdb"), "the objects: "),
    "metadata cut off": (lambda s: cut(s.store / "metadata" / "data.mdb"), "the metadata: "),
    "somebody else's database": (foreign_database, "the objects: "),
    "an output in an object": (
        lose_object(".tasks/{t100000}/output"),
        "its output, the object",
    ),
    "a result": (lose_object(".spear/results/{t400000}"), "its result, the object"),
    "a result of another size": (other_result, "has 5 bytes instead of 400000"),
    "an output in the metadata": (lose_output, "its output is missing from the metadata"),
    "an input": (lose_input, "its input, the object"),
    "a record that is none": (break_record(b"\x93\x01"), "cannot be read"),
    "a record with text that is none": (break_record(b"\x81\xa1\xff\x01"), "cannot be read"),
    "a bit in the code": (lambda s: flip(s.code, 30), "artifact work@1: its code"),
    "the code": (lambda s: s.code.unlink(), "artifact work@1: its code is missing"),
    "the metadata": (lambda s: shutil.rmtree(s.store / "metadata"), "if a volume is not mounted"),
    "both stores": (lambda s: shutil.rmtree(s.store), "if a volume is not mounted"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_named_and_stays(state: State, name: str) -> None:
    """``--repair`` removes nothing of it."""
    harm, expected = LOST[name]
    harm(state)
    status, problems, _ = state.fsck()
    assert status == 7
    lost = [f"{each['where']}: {each['what']}" for each in problems if each["lost"]]
    assert [each for each in lost if expected in each], problems
    status, again, _ = state.fsck("--repair")
    assert status == 7
    assert [f"{p['where']}: {p['what']}" for p in again if p["lost"]] == lost
    assert not [each for each in again if each["lost"] and each["repaired"]]


@pytest.mark.parametrize("what", ["store-lmdb", "store-lmdb/metadata"])
def test_a_volume_that_is_not_mounted(state: State, what: str) -> None:
    """Nothing begins anew, copies nothing or tidies up as if nothing had ever been there."""
    (state.root / "plugins" / what).rename(state.folder / "volume")
    for command in (["node"], ["backup", "b"], ["fsck", "--repair", "--remove-damaged"]):
        told = state.spear(*command)
        assert told.returncode == 7, told.stderr
        assert "if a volume is not mounted" in told.stdout + told.stderr
    assert not (state.folder / "b").exists()
    shutil.rmtree(state.root / "plugins" / what)
    (state.folder / "volume").rename(state.root / "plugins" / what)
    assert state.fsck() == (0, [], [])


FULL_DISK = """
mount -t tmpfs -o size=16m none "$DISK" && cp -a "$SPEAR_STATE_DIR" "$DISK/state" || exit 99
dd if=/dev/zero of="$DISK/filler" bs=4096 2>/dev/null
export SPEAR_STATE_DIR="$DISK/state"
spear fsck --repair --remove-damaged; echo "status $?"
rm "$DISK/filler"
spear fsck --repair --remove-damaged; echo "status $?"
spear fsck; echo "status $?"
"""


def compact(folder: Path) -> None:
    """Leave no page free in a store, so that any change needs more of the disk."""
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as copy,
        lmdb.open(str(folder), max_dbs=20) as environment,
    ):
        environment.copy(copy, compact=True)
        Path(copy, "data.mdb").replace(folder / "data.mdb")


def test_a_full_disk_is_no_loss(state: State, mounts: str) -> None:
    """What cannot be put right for want of room is told, stays, and can be put right later."""
    state.with_objects(lambda store: store.add_ref("my/small", holder="task/t-gone"))
    state.blob.unlink()
    compact(state.store / "objects")
    (state.folder / "disk").mkdir()
    path = f"{Path(SPEAR).parent}:{os.environ['PATH']}"
    ours = {"HOME": str(state.folder), "SPEAR_STATE_DIR": str(state.root), "PATH": path}
    told = subprocess.run(
        [*mounts.split(), "sh", "-c", FULL_DISK],
        env={**os.environ, **ours, "DISK": str(state.folder / "disk")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    full, room, again = told.stdout.split("status ")[:-1]
    statuses = [part[0] for part in told.stdout.split("status ")[1:]]
    assert statuses == ["1", "0", "0"], told
    assert "no room left" in full + told.stderr
    assert "0 problems, 0 of them lost data" in full
    assert "'my/large'" in room
    assert "task/t-gone" in room
    assert "task/t-gone" not in again


def test_the_command_says_what_it_finds(state: State) -> None:
    flip(state.blob, 999)
    orphan(state)
    told = state.spear("fsck", "--json")
    assert told.returncode == 7
    report = json.loads(told.stdout)
    assert [each["lost"] for each in report["problems"]] == [True, False]
    assert (report["state_dir"], report["unchecked"]) == (str(state.root), [])
    told = state.spear("fsck")
    assert (told.returncode, told.stdout.count("\n")) == (7, 3)
    assert "2 problems, 1 of them lost data" in told.stdout
    assert "spear restore" in told.stderr
    told = state.spear("fsck", "--repair", "--remove-damaged")
    assert told.returncode == 0, told.stdout
    assert "; removed\n" in told.stdout
    assert "; put right\n" in told.stdout
    told = state.spear("fsck", "--remove-damaged")
    assert told.returncode == 2


def test_what_is_lost_can_be_removed(state: State) -> None:
    """And all else stays."""
    flip(state.blob, 999)
    orphan(state)
    assert state.fsck("--repair")[0] == 7
    status, problems, _ = state.fsck("--repair", "--remove-damaged")
    assert status == 0
    assert all(each["repaired"] for each in problems)
    assert {"object 'my/large'", "the file " + "ab" * 16} <= {p["where"] for p in problems}
    assert state.fsck() == (0, [], [])
    keys: list[str] = []

    async def work(store: ObjectStore) -> None:
        keys.extend(stat.key for stat in (await store.list("my/")).objects)

    state.with_objects(work)
    assert keys == ["my/small"]


@pytest.mark.parametrize("where", ["", "plugins/store-lmdb/objects/blobs"])
def test_a_foreign_file_is_named_and_left_alone(state: State, where: str) -> None:
    path = state.root / where / "README"
    path.write_text("mine")
    for options in ([], ["--repair"], ["--repair", "--remove-damaged"]):
        status, problems, _ = state.fsck(*options)
        assert status == 1
        assert [each["where"] for each in problems] == [f"the file {path}"]
        assert "move it away" in problems[0]["what"]
    assert path.read_text() == "mine"


def test_a_directory_of_nobody(tmp_path: Path) -> None:
    state = State(tmp_path, {})
    told = state.spear("fsck")
    assert told.returncode == 2
    assert "there is no state directory" in told.stderr
    assert not state.root.exists()
    state.root.mkdir()
    (state.root / "letters").mkdir()
    told = state.spear("fsck")
    assert told.returncode == 2
    assert "is no state directory" in told.stderr
    assert [path.name for path in state.root.iterdir()] == ["letters"]
