"""Holding a state directory."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from spear_core.errors import ConfigError, NodeAlreadyRunningError
from spear_core.node._state import hold_state, open_run_dir, write_atomically
from spear_core.node.paths import StatePaths, default_state_dir

HOLD = """
import sys, time
from pathlib import Path
from spear_core.node._state import hold_state
from spear_core.node.paths import StatePaths
with hold_state(StatePaths(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_directory_is_private_and_the_identity_stays(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path / "a" / "state")
    with hold_state(paths) as first:
        assert paths.root.stat().st_mode & 0o777 == 0o700
        assert paths.lock.stat().st_mode & 0o777 == 0o600
    with hold_state(paths) as second:
        assert first == second


def test_a_second_holder_is_refused_with_the_firsts_pid_even_if_it_dies_hard(
    tmp_path: Path,
) -> None:
    paths = StatePaths(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(NodeAlreadyRunningError, match=f"pid {holder.pid}") as refused,
            hold_state(paths),
        ):
            pass
        assert refused.value.pid == holder.pid
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with hold_state(paths):
        assert int(paths.lock.read_text()) == os.getpid()


def test_a_holder_of_a_moment_ago_has_time_to_say_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = StatePaths(tmp_path)
    with paths.lock.open("wb", buffering=0) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr("time.sleep", lambda seconds: lock.write(b"4711\n"))
        with pytest.raises(NodeAlreadyRunningError, match="pid 4711"), hold_state(paths):
            pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_has_room_for_a_holder_without_a_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Else a node could not be started to make room, by deleting objects; other trouble is told."""
    paths = StatePaths(tmp_path)
    with hold_state(paths):
        pass

    def fails(*args: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fails)
    with ExitStack() as stack:
        if number != errno.ENOSPC:
            stack.enter_context(pytest.raises(ConfigError, match="cannot be used: Read-only"))
        stack.enter_context(hold_state(paths))
        assert paths.lock.read_bytes() == b""


def test_a_place_that_cannot_be_a_directory_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"Not a directory.*--state-dir"),
        hold_state(StatePaths(tmp_path / "file" / "state")),
    ):
        pass


def test_a_replaced_file_is_whole_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d" / "f"
    write_atomically(path, b"one")
    write_atomically(path, b"two", mode=0o400)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o400
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert [p.name for p in path.parent.iterdir()] == ["f"]


def test_names_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after it takes no file, and no directory on the way to it."""
    done: list[str] = []
    fsync, mkdir, rename = os.fsync, os.mkdir, os.rename

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def made(path: Any, *args: Any, **options: Any) -> None:
        mkdir(path, *args, **options)
        done.append(f"+{path}")

    def renamed(old: Any, new: Any) -> None:
        rename(old, new)
        done.append(f"+{new}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "mkdir", made)
    monkeypatch.setattr(os, "rename", renamed)
    write_atomically(tmp_path / "a" / "b" / "f", b"one")
    new = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "f"]
    for path in new:
        assert str(path.parent) in done[done.index(f"+{path}") :]
    assert done.index(f"+{new[-1]}") > 0, "after its content"
    assert done.count(str(new[-1].parent)) == 1, "no more than is needed"


def test_the_run_directory_is_emptied_and_has_a_short_path(tmp_path: Path) -> None:
    short = StatePaths(Path("/tmp") / f"spear-test-{os.getpid()}")
    short.run.mkdir(parents=True)
    (short.run / "left-over").write_text("")
    try:
        with open_run_dir(short) as run:
            assert run == short.run
            assert list(run.iterdir()) == []
        assert not short.run.exists()
    finally:
        short.root.rmdir()
    with open_run_dir(StatePaths(tmp_path / ("x" * 80))) as run:
        assert len(os.fsencode(run)) <= 60
        assert run.stat().st_mode & 0o777 == 0o700
    assert not run.exists()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SPEAR_STATE_DIR": "/a/b", "XDG_STATE_HOME": "/x"}, "/a/b"),
        ({"XDG_STATE_HOME": "/x"}, "/x/spear"),
    ],
)
def test_the_default_state_directory(environ: dict[str, str], expected: str) -> None:
    assert default_state_dir(environ) == Path(expected)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"a" * 10_000, b"../x\n"])
def test_a_damaged_identity_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    paths = StatePaths(tmp_path)
    paths.node_id.write_bytes(damage)
    with hold_state(paths) as first:
        assert first.startswith("n-")
    with hold_state(paths) as second:
        assert second == first


def test_a_directory_that_was_removed_and_made_anew_is_left_to_its_new_owner() -> None:
    with tempfile.TemporaryDirectory(prefix="s-") as directory:
        paths = StatePaths(Path(directory) / "state")
        with ExitStack() as second:
            with hold_state(paths), open_run_dir(paths) as run:
                paths.root.rename(Path(directory) / "removed")
                second.enter_context(hold_state(paths))
                assert second.enter_context(open_run_dir(paths)) == run
            assert run.exists()
        assert not run.exists()


def test_a_directory_that_serves_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    tmp_path.chmod(0o755)
    with (
        pytest.raises(ConfigError, match=r"holds other files \(thesis\.tex\).*--state-dir"),
        hold_state(StatePaths(tmp_path)),
    ):
        pass
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_caches_and_a_volume_for_logs_are_no_obstacle(tmp_path: Path) -> None:
    for name in ("cache", "logs", "lost+found"):
        (tmp_path / name).mkdir()
    with hold_state(StatePaths(tmp_path)):
        pass
