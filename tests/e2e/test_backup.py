"""Backups of a node that works, and the way back: compared with what callers were told."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    ArtifactUpload,
    ExecutionMode,
    InvokeRequest,
    NodeApi,
    TaskInfo,
    TaskState,
)
from spear_core.builtins.local_socket import connect
from spear_core.errors import TaskNotFoundError

WORK = '''
"""A function whose answers are as large as it is asked for."""

import time

from spear_sdk import function


@function
def work(text: str) -> str:
    """``milliseconds size …`` → so much, a little later."""
    milliseconds, size, *_ = text.split()
    time.sleep(int(milliseconds) / 1000)
    return text[:40] + "." * int(size)
'''
CONFIG = """
[tasks]
keep_finished = {keep}
[execution]
max_concurrent_tasks = 8
inline_output_bytes = 200000
"""
SIZES = (0, 10, 100_000, 300_000)
"""Of outputs: within a record, an object of the journal's, an object of its own."""
NEWER = b'{"sha256":"0","backup":{"format":2,"news":true}}'


@attrs.define
class Ledger:
    """What the node has said."""

    inputs: dict[str, str] = attrs.field(factory=dict)
    ends: dict[str, TaskInfo] = attrs.field(factory=dict)
    objects: dict[str, int] = attrs.field(factory=dict)
    """Key → version that is there at least."""
    keys: dict[str, str] = attrs.field(factory=dict)
    """Idempotency key → task."""

    def copy(self) -> Ledger:
        return Ledger(dict(self.inputs), dict(self.ends), dict(self.objects), dict(self.keys))


def value_of(key: str, version: int) -> bytes:
    """What is in every version of an object."""
    return f"{key} {version} ".encode() * (10 if key.startswith("s") else 20_000)


async def load(api: NodeApi, ledger: Ledger, rng: random.Random, enough: trio.Event) -> None:
    """Ask for this and that, and note what is answered, to the last answer."""

    async def submit() -> None:
        while not enough.is_set():
            text = f"{rng.choice([0, 1, 20])} {rng.choice(SIZES)} {rng.getrandbits(60)}"
            if rng.random() < 0.3:
                text += " " * 100_000  # an input that is an object
            key = str(rng.getrandbits(60)) if rng.random() < 0.3 else ""
            request = InvokeRequest(
                function="work",
                payload=text.encode(),
                mode=ExecutionMode.ASYNC,
                idempotency_key=key,
            )
            task = (await api.invoke(request)).task
            ledger.inputs[task.task_id] = text
            if key:
                ledger.keys[key] = task.task_id
            await trio.sleep(rng.uniform(0, 0.02))

    async def hear() -> None:
        while True:
            waiting = [each for each in ledger.inputs if each not in ledger.ends]
            if waiting:
                task_id = rng.choice(waiting)
                try:
                    ledger.ends[task_id] = await api.get_task(task_id, wait=True)
                except TaskNotFoundError:  # not kept any longer
                    ledger.ends[task_id] = None  # type: ignore[assignment]
            await trio.sleep(0.001)

    async def put() -> None:
        while not enough.is_set():
            key = f"{rng.choice('sl')}/{rng.randrange(20)}"
            version = ledger.objects.get(key, 0) + 1
            await api.objects.put(key, value_of(key, version), expect=version - 1)
            ledger.objects[key] = version
            await trio.sleep(rng.uniform(0, 0.01))

    async with trio.open_nursery() as hearing:
        for each in (hear, hear):
            hearing.start_soon(each)
        async with trio.open_nursery() as asking:
            for each in (submit, submit, put):
                asking.start_soon(each)
        hearing.cancel_scope.cancel()


async def output_of(api: NodeApi, task: TaskInfo) -> str:
    assert task.result is not None
    if task.result.object_key:
        return (await api.objects.get(task.result.object_key))[1].decode()
    return task.result.output.decode()


def expected(text: str) -> str:
    return text[:40] + "." * int(text.split()[1])


async def check(api: NodeApi, before: Ledger, after: Ledger, *, all_kept: bool) -> int:
    """Hold a restored node to what was said before its backup began, and has it not make up what
    was never said; how many tasks it has."""
    for task in await api.list_tasks(limit=100_000):
        assert task.task_id in after.inputs, "nobody was told of it"
        try:
            end = await api.get_task(task.task_id, wait=True)
        except TaskNotFoundError:
            assert not all_kept
            continue
        text = after.inputs[task.task_id]
        if end.state is TaskState.COMPLETED:
            assert await output_of(api, end) == expected(text)
        else:
            assert end.result is not None
            assert end.result.error is not None
            assert end.result.error.kind == "NodeRestartedError", end
    if all_kept:
        for task_id in before.inputs:
            await api.get_task(task_id)
        for task_id, end in before.ends.items():
            assert await api.get_task(task_id) == end
        for key, task_id in before.keys.items():
            again = InvokeRequest(
                function="work",
                payload=before.inputs[task_id].encode(),
                idempotency_key=key,
                mode=ExecutionMode.ASYNC,
            )
            assert (await api.invoke(again)).task.task_id == task_id
    for key, version in before.objects.items():
        stat, value = await api.objects.get(key)
        assert version <= stat.version <= after.objects[key] + 1
        assert value == value_of(key, stat.version)
    return len(await api.list_tasks(limit=100_000))


async def deploy(api: NodeApi) -> None:
    await api.deploy(
        ArtifactUpload(name="work", filename="work.py", content=WORK.encode(), entry="work")
    )


async def back_up_under_load(
    url: str, folder: Path, ledger: Ledger, rng: random.Random, backups: int
) -> list[tuple[Path, Ledger, Ledger]]:
    """Each backup, with what was said before it began and before it had ended."""
    made = []
    enough = trio.Event()
    async with connect(url) as api, connect(url) as operator:
        await deploy(api)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load, api, ledger, rng, enough)
            for number in range(backups):
                have = len(ledger.ends)
                while True:
                    await trio.sleep(0.01)
                    if len(ledger.ends) >= have + 30:
                        break
                before = ledger.copy()
                report = await operator.backup(str(folder / f"backup-{number}"))
                made.append((Path(report.path), before, ledger))
            enough.set()  # what the node took is told before this ends
    return made


@pytest.mark.parametrize("keep", [100_000, 10])
def test_backups_under_load_have_what_was_acknowledged(home: Any, keep: int) -> None:
    """Also while tasks are forgotten as quickly as they end, and their objects deleted."""
    config = home.folder / "node.toml"
    config.write_text(CONFIG.format(keep=keep))
    node = home.node("--config", str(config))
    ledger, rng = Ledger(), random.Random(7)
    url = f"unix://{home.state}/node.sock"
    made = trio.run(back_up_under_load, url, home.folder, ledger, rng, 3)
    node.process.kill()
    node.process.wait()
    counts = []
    for path, before, after in made:
        assert not list(home.folder.glob("*.partial"))
        state = home.folder / f"state-of-{path.name}"
        told = home.spear("restore", str(path), "--state-dir", str(state))
        assert told.status == 0, told.err
        told = home.spear("fsck", "--state-dir", str(state), "--json")
        problems = json.loads(told.out)["problems"]
        assert not [each for each in problems if not each["expected"]], problems
        assert told.status == 0
        again = home.node("--config", str(config), "--state-dir", str(state))

        async def look(state: Path = state, before: Ledger = before, after: Ledger = after) -> int:
            async with connect(f"unix://{state}/node.sock") as api:
                return await check(api, before, after, all_kept=keep > 100)

        counts.append(trio.run(look))
        assert again.stop() == 0
        assert home.spear("fsck", "--state-dir", str(state)).status == 0
    assert all(counts)
    assert len(ledger.inputs) > 50, "too few: the test tests nothing"


@attrs.define
class Prepared:
    """A node's state with something of everything, the node stopped; and backups of it."""

    home: Any
    outputs: dict[str, bytes]
    """By task."""

    def spear(self, *args: str, **options: Any) -> Any:
        return self.home.spear(*args, **options)

    def check_restored(self, state: Path) -> None:
        """Start a node there, and find everything."""
        node = self.home.node("--state-dir", str(state))

        async def look() -> None:
            async with connect(f"unix://{state}/node.sock") as api:
                for task_id, output in self.outputs.items():
                    task = await api.get_task(task_id)
                    assert task.result is not None
                    assert task.result.output == output
                assert (await api.objects.get("my/large"))[1] == LARGE
                stat = await api.objects.stat("my/pinned")
                assert (stat.pinned, stat.refs) == (True, 2)
                holders = {each.name for each in await api.objects.holders("my/pinned")}
                assert holders == {"me", "you"}
                answer = await api.invoke(InvokeRequest(function="work", payload=b"0 5 x"))
                assert answer.task.result is not None
                assert answer.task.result.output == b"0 5 x....."

        trio.run(look)
        assert node.stop() == 0


LARGE = bytes(range(256)) * 2000


@pytest.fixture
def prepared(home: Any) -> Prepared:
    """A stopped node that has had a task, objects and an artifact."""
    node = home.node()
    outputs: dict[str, bytes] = {}

    async def fill() -> None:
        async with connect(f"unix://{home.state}/node.sock") as api:
            await deploy(api)
            for size in (10, 100_000):
                request = InvokeRequest(
                    function="work", payload=b"0 %d" % size, mode=ExecutionMode.ASYNC
                )
                task_id = (await api.invoke(request)).task.task_id
                task = await api.get_task(task_id, wait=True)
                assert task.result is not None
                outputs[task_id] = task.result.output
            await api.objects.put("my/large", LARGE)
            await api.objects.put("my/pinned", b"a little secret")
            await api.objects.add_ref("my/pinned", holder="me")
            await api.objects.add_ref("my/pinned", holder="you")
            await api.objects.pin("my/pinned")

    trio.run(fill)
    assert node.stop() == 0
    return Prepared(home, outputs)


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("node.lock", "lock", "lock.mdb")
    }


@pytest.mark.parametrize("name", ["monday", "monday.tar"])
def test_there_and_back(prepared: Prepared, name: str) -> None:
    home = prepared.home
    target = home.folder / name
    told = prepared.spear("backup", str(target), "--json")
    assert told.status == 0, told.err
    report = json.loads(told.out)
    assert (report["path"], report["artifacts"]) == (str(target), 1)
    assert report["objects"] == 3, "two of ours, and the large output"
    assert sorted(p.name for p in home.folder.iterdir() if "monday" in p.name) == [name]
    backed_up = [target, *target.rglob("*")]
    assert {oct(p.stat().st_mode & 0o77) for p in backed_up} == {"0o0"}, "nobody else's"
    state = home.folder / "elsewhere" / "state"
    told = prepared.spear("restore", str(target), "--state-dir", str(state), "--json")
    assert told.status == 0, told.err
    assert json.loads(told.out)["node_id"] == report["node_id"]
    assert {oct(p.stat().st_mode & 0o77) for p in state.rglob("*")} == {"0o0"}, "nobody else's"
    told = prepared.spear("fsck", "--state-dir", str(state))
    assert (told.status, told.out.count("\n")) == (0, 1), told.out
    shutil.rmtree(home.state)
    prepared.check_restored(state)


def test_what_is_there_is_not_touched(prepared: Prepared) -> None:
    home = prepared.home
    backup = home.folder / "b"
    assert prepared.spear("backup", str(backup)).status == 0
    told = prepared.spear("backup", str(backup))
    assert told.status == 2
    assert "exists already" in told.err
    told = prepared.spear("backup", str(home.state / "b"))
    assert told.status == 2
    assert "within the state directory" in told.err

    before = tree(home.state)
    told = prepared.spear("restore", str(backup))
    assert told.status == 2
    assert "--force" in told.err
    assert tree(home.state) == before
    told = prepared.spear("restore", str(backup), "--force", "--json")
    assert told.status == 0, told.err
    aside = Path(json.loads(told.out)["moved_aside"])
    assert aside.parent == home.state
    assert tree(aside) == before
    assert prepared.spear("fsck").status == 0
    assert prepared.spear("restore", str(backup), "--force").status == 0
    assert len(list(home.state.glob("before-restore-*"))) == 2
    assert tree(aside) == before
    prepared.check_restored(home.state)


def test_a_running_node_keeps_its_directory(prepared: Prepared) -> None:
    home = prepared.home
    node = home.node()
    assert prepared.spear("backup", "b").status == 0, "its own way"
    for command in (["restore", "b"], ["restore", "b", "--force"], ["fsck"], ["fsck", "--repair"]):
        told = prepared.spear(*command)
        assert told.status == 6, command
        assert f"pid {node.process.pid}" in told.err
        assert "stop it" in told.err
    assert node.stop() == 0
    prepared.check_restored(home.state)


def flip(path: Path, at: int = 100) -> None:
    """Turn one bit; of a file that is linked elsewhere, here only."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    mode = path.stat().st_mode
    path.unlink()
    path.write_bytes(content)
    path.chmod(mode)


def blob(root: Path) -> Path:
    """The file of the largest object."""
    return max((root / "blobs").iterdir(), key=lambda path: path.stat().st_size)


DAMAGES: dict[str, Callable[[Path], Path]] = {
    "a blob": lambda backup: blob(backup / "stores" / "objects"),
    "objects": lambda backup: backup / "stores" / "objects" / "data.mdb",
    "metadata": lambda backup: backup / "stores" / "metadata" / "data.mdb",
    "code": lambda backup: next(backup.glob("artifacts/code/*/work.py")),
    "identity": lambda backup: backup / "node.id",
    "manifest": lambda backup: backup / "manifest.json",
}


def harm(file: Path, how: str) -> None:
    if how == "flipped":
        flip(file, 3)
        return
    content = file.read_bytes()
    file.unlink()
    if how == "cut":
        file.write_bytes(content[:-9])


def test_a_damaged_backup_is_refused(prepared: Prepared) -> None:
    home = prepared.home
    assert prepared.spear("backup", "whole").status == 0
    for what, how in itertools.product(DAMAGES, ["flipped", "cut", "missing"]):
        backup = home.folder / "b"
        shutil.copytree(home.folder / "whole", backup)
        file = DAMAGES[what](backup)
        harm(file, how)
        told = prepared.spear("restore", str(backup), "--state-dir", "new")
        assert told.status in (6, 7), (what, how, told.err)
        assert file.name in told.err
        assert "Traceback" not in told.err
        left = [path.name for path in (home.folder / "new").glob("*")]
        assert left in ([], ["node.lock"])
        shutil.rmtree(backup)


def test_an_archive_that_is_damaged(prepared: Prepared) -> None:
    home = prepared.home
    assert prepared.spear("backup", "b.tar").status == 0
    whole = (home.folder / "b.tar").read_bytes()
    rng = random.Random(3)
    for number in range(12):
        content = bytearray(whole)
        if number % 2:
            del content[rng.randrange(len(content) - 20_000) :]
        else:
            content[content.index(LARGE[:1000]) + rng.randrange(len(LARGE))] ^= 1
        (home.folder / "broken.tar").write_bytes(content)
        told = prepared.spear("restore", "broken.tar", "--state-dir", "new")
        assert told.status in (6, 7), told.err
        assert "broken.tar" in told.err or "damaged" in told.err
        assert [path.name for path in (home.folder / "new").glob("*")] in ([], ["node.lock"])


def test_what_is_no_backup_or_a_newer_one(prepared: Prepared) -> None:
    home = prepared.home
    (home.folder / "empty").mkdir()
    (home.folder / "text.tar").write_text("some text\n" * 1000)
    for name in ("empty", "text.tar"):
        told = prepared.spear("restore", name, "--state-dir", "new")
        assert told.status == 6
        assert "is no backup" in told.err
    (home.folder / "empty" / "manifest.json").write_bytes(NEWER)
    told = prepared.spear("restore", "empty", "--state-dir", "new")
    assert told.status == 6
    assert "format 2" in told.err
    assert "newer" in told.err
    assert not (home.folder / "new").exists()


def test_a_configuration_with_other_stores(prepared: Prepared) -> None:
    home = prepared.home
    assert prepared.spear("backup", "b").status == 0
    (home.folder / "memory.toml").write_text('[stores]\nobjects = "memory"\n')
    told = prepared.spear("restore", "b", "--state-dir", "new", "--config", "memory.toml")
    assert told.status == 2
    assert "'lmdb'" in told.err
    assert "stores.objects" in told.err


def test_a_full_disk(prepared: Prepared, mounts: str) -> None:
    home = prepared.home
    (home.folder / "disk").mkdir()
    script = 'mount -t tmpfs -o size=200k none "$FULL" && "$@"; code=$?; ls -A "$FULL"; exit $code'
    wrapper = ["env", f"FULL={home.folder / 'disk'}", *mounts.split(), "sh", "-c", script, "sh"]
    for name in ("b", "b.tar"):
        told = prepared.spear("backup", f"disk/{name}", wrapper=wrapper)
        assert told.status == 5, told.err
        assert "no room left" in told.err
        assert str(home.folder / "disk") in told.err
        assert told.out == "", "something is left"
    assert prepared.spear("backup", "b").status == 0
    told = prepared.spear("restore", "b", "--state-dir", "disk/state", wrapper=wrapper)
    assert told.status == 5, told.err
    assert "no room left" in told.err
    prepared.check_restored(home.state)


MUCH = 40 << 20
OFTEN = 20
"""Attempts at catching a command in the middle; nearly always the first one does."""


def much(home: Any) -> None:
    """Enough in the stores that copying it takes a moment."""
    (home.folder / "much").write_bytes(random.Random(1).randbytes(MUCH))
    for number in range(2):
        told = home.spear("objects", "put", f"much/{number}", "much")
        assert told.status == 0, told.err


def parts(folder: Path) -> list[Path]:
    """What there is of a backup that is not whole."""
    return [*folder.glob("b*.partial"), *folder.glob(".b*.partial")]


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def begin(home: Any, name: str) -> Any:
    """Start a backup, and wait until it has begun to write."""
    command = home.start("backup", name)
    home.wait_until(
        lambda: parts(home.folder) or (home.folder / name).exists() or command.poll() is not None,
        "the backup begins",
    )
    return command


def test_a_node_that_is_killed_in_the_middle_of_a_backup(prepared: Prepared) -> None:
    """What is left has not the name of the backup, and is none."""
    home = prepared.home
    node = home.node()
    much(home)
    for _ in range(OFTEN):
        command = begin(home, "b")
        node.process.kill()
        node.process.wait()
        status = command.wait(60)
        left = parts(home.folder)
        node = home.node()
        if not (home.folder / "b").exists():
            break
        remove(home.folder / "b")  # it was whole before
    assert status == 4, "the command says that its node is gone"
    assert left, "never caught in the middle"
    for path in left:
        if not (path / "manifest.json").exists():
            told = home.spear("restore", str(path), "--state-dir", "new")
            assert told.status == 6
            assert "never finished" in told.err
    assert home.spear("backup", "b").status == 0
    assert node.stop() == 0
    assert home.spear("fsck").status == 0
    prepared.check_restored(home.state)


@pytest.mark.parametrize(
    ("name", "running", "number"),
    [
        ("b", True, signal.SIGINT),
        ("b.tar", True, signal.SIGINT),
        ("b", False, signal.SIGINT),
        ("b", True, signal.SIGKILL),
    ],
)
def test_a_command_that_ends_in_the_middle_of_a_backup(
    prepared: Prepared, name: str, running: bool, number: int
) -> None:
    """Nothing is left of a backup: what a node was writing, it removes."""
    home = prepared.home
    node = home.node()
    much(home)
    if not running:
        assert node.stop() == 0
    for _ in range(OFTEN):
        command = begin(home, name)
        command.send_signal(number)
        status = command.wait(60)
        if not (home.folder / name).exists():
            break
        remove(home.folder / name)
    assert status == (130 if number == signal.SIGINT else -number), "never caught in the middle"
    home.wait_until(lambda: not parts(home.folder), "nothing is left")
    assert home.spear("backup", name).status == 0


def test_a_restore_that_is_killed_in_the_middle(prepared: Prepared) -> None:
    """No node starts on half of it, and it can be done again."""
    home = prepared.home
    node = home.node()
    much(home)
    assert home.spear("backup", "b.tar").status == 0
    assert node.stop() == 0
    new = home.folder / "new"
    for _ in range(OFTEN):
        command = home.start("restore", "b.tar", "--state-dir", "new")
        home.wait_until(lambda: new.exists(), "it begins")
        time.sleep(0.02)
        command.kill()
        if command.wait() != 0 and (new / "restoring").exists():
            break
        shutil.rmtree(new)
    told = home.spear("node", "--state-dir", "new")
    assert told.status == 2
    assert "run `spear restore` again" in told.err
    told = home.spear("fsck", "--state-dir", "new")
    assert told.status == 7
    assert "run `spear restore` again" in told.out
    told = home.spear("restore", "b.tar", "--state-dir", "new")
    assert told.status == 0, told.err
    assert not list(new.glob("before-restore-*")), "nothing was there"
    prepared.check_restored(new)


CUT = """
import errno, os, sys
from pathlib import Path
from spear_core.cli import main

most, how = int(sys.argv.pop(1)), sys.argv.pop(1)
state, rename, count = Path.cwd() / "state", Path.rename, 0


def counted(path, target):
    global count
    if Path(target).parent in (state, path.parent / "x") or "before-restore" in str(target):
        if count == most:
            if how == "exit":
                os._exit(9)
            if how == "fails once":
                count += 1
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        count += 1
    return rename(path, target)


Path.rename = counted
sys.exit(main())
"""


def restore_that_ends(home: Any, most: int, how: str) -> subprocess.CompletedProcess[bytes]:
    """One that makes so many moves; the next ends the process, or fails."""
    restore = ["restore", str(home.folder / "b"), "--force"]
    return subprocess.run(
        [sys.executable, "-c", CUT, str(most), how, *restore],
        cwd=home.folder,
        env=home.environ(),
        capture_output=True,
        check=False,
    )


def test_a_restore_that_ends_between_any_two_of_its_moves(prepared: Prepared) -> None:
    """What was there before is somewhere still, and no node believes what is there now."""
    home = prepared.home
    assert prepared.spear("backup", "b").status == 0
    before = tree(home.state)
    for most in itertools.count(0, 3):
        told = restore_that_ends(home, most, "exit")
        if told.returncode == 0:
            break
        assert told.returncode == 9, told.stderr
        (aside,) = home.state.glob("before-restore-*")
        found = {**tree(home.state), **tree(aside)}
        assert {name: found.get(name) for name in before} == before, most
        if most == 6:
            told = home.spear("node")
            assert told.status == 2
            assert "run `spear restore` again" in told.err
        shutil.rmtree(home.state)
        restored = home.spear("restore", str(home.folder / "b"))
        assert restored.status == 0, restored.err
        before = tree(home.state)
    assert most > 6, "every entry of the old directory and of the new one is moved"
    prepared.check_restored(home.state)


def test_a_restore_one_of_whose_moves_fails(prepared: Prepared) -> None:
    """All is as before; when not even that can be had, no node starts."""
    home = prepared.home
    assert prepared.spear("backup", "b").status == 0
    before = tree(home.state)
    for most in itertools.count():
        told = restore_that_ends(home, most, "fails once")
        if told.returncode == 0:
            break
        assert told.returncode == 6, told.stderr
        assert b"Device or resource busy" in told.stderr
        assert tree(home.state) == before, most
        assert not list(home.state.glob("before-restore-*"))
        assert not (home.state / "restoring").exists()
    assert most > 6, "every entry of the old directory and of the new one is moved"
    prepared.check_restored(home.state)
    assert restore_that_ends(home, 3, "fails for ever").returncode == 6
    told = home.spear("node")
    assert told.status == 2
    assert "run `spear restore` again" in told.err


def test_a_restore_where_something_is_mounted(prepared: Prepared, mounts: str) -> None:
    """An empty volume for logs is no obstacle; what cannot be moved aside is named, and stays."""
    home = prepared.home
    assert prepared.spear("backup", "b").status == 0
    before = tree(home.state)
    script = 'mkdir -p "$AT" && mount -t tmpfs none "$AT" && touch "$AT/$FILE" && shift && "$@"'
    for state, file, status in ((home.state, "old.log", 2), (home.folder / "new", ".", 0)):
        wrapper = ["env", f"AT={state}/logs", f"FILE={file}", *mounts.split(), "sh", "-c", script]
        command = ["restore", "b", "--state-dir", str(state), *(["--force"] if status else [])]
        told = prepared.spear(*command, wrapper=[*wrapper, "sh", "sh"])
        assert told.status == status, told.err
        if status:
            assert f"{home.state}/logs cannot be moved aside" in told.err
    assert tree(home.state) == before
    prepared.check_restored(home.folder / "new")
