"""Finding a place for control groups, on machines other than this one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from spear_runtime_process import _cgroup
from spear_runtime_process._cgroup import Cgroups, find_cgroups

HYBRID = """\
31 23 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
32 23 0:28 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
33 23 0:29 /pod /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 23 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
35 23 0:31 / /proc rw - proc proc rw
"""


def test_mounts_are_found_by_controller() -> None:
    mounts = _cgroup._mounts(HYBRID)
    assert mounts["memory"] == (Path("/sys/fs/cgroup/memory"), "/")
    assert mounts["cpuacct"] == (Path("/sys/fs/cgroup/cpu,cpuacct"), "/pod")
    assert mounts[""] == (Path("/sys/fs/cgroup/unified"), "/")


def test_version_2_needs_both_controllers(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    with pytest.raises(OSError, match="has no controller pids"):
        _cgroup._find({"": tmp_path})


def test_version_2_switches_the_controllers_on(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    groups = _cgroup._find({"": tmp_path})
    assert groups.version == 2
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_version_2_writes_its_own_files(tmp_path: Path) -> None:
    """The names of version 2, on a plain folder: its counters and limits are ordinary files."""
    groups = Cgroups(2, dict.fromkeys(("memory", "pids", "cpu"), tmp_path))
    group = groups.create("x", memory=1 << 20, processes=7)
    (folder,) = group.directories
    assert group.entrances == [f"{folder}/cgroup.procs"]
    assert (folder / "memory.max").read_text() == str(1 << 20)
    assert (folder / "memory.oom.group").read_text() == "1"
    assert (folder / "pids.max").read_text() == "7"
    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (folder / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (folder / "memory.current").write_text("4096\n")
    assert group.out_of_memory()
    assert group.usage().cpu_seconds == 1.5
    assert group.usage().memory_bytes == 4096


def test_a_place_that_cannot_be_written_is_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = {"memory": tmp_path / "no", "pids": tmp_path / "no"}
    monkeypatch.setattr(_cgroup, "_own_groups", lambda: nowhere)
    groups, reason = find_cgroups()
    assert groups is None
    assert "cannot make control groups" in reason
    assert "Delegate=yes" in reason


async def test_what_a_dead_node_left_is_swept(tmp_path: Path) -> None:
    gone = await trio.run_process(["true"])
    assert gone.returncode == 0
    groups = Cgroups(2, {"memory": tmp_path, "pids": tmp_path})
    old, own = tmp_path / "spear-4194305-1", tmp_path / f"spear-{os.getpid()}-1"
    old.mkdir()
    own.mkdir()
    groups.sweep()
    assert not old.exists()
    assert own.exists()


async def test_real_groups_where_there_are_any() -> None:
    groups, reason = find_cgroups()
    if groups is None:
        assert "control groups" in reason
        return
    assert not [left for root in groups.roots.values() for left in root.glob("spear-*-probe")]
    group = groups.create("test", memory=64 << 20, processes=5)
    process = await trio.lowlevel.open_process(["sleep", "60"])
    for file in group.entrances:
        Path(file).write_text(str(process.pid))
    assert not group.out_of_memory()
    assert group.usage().memory_bytes is not None
    with trio.fail_after(30):
        await group.end()
        await process.wait()
    assert process.returncode == -9
    assert not any(directory.exists() for directory in group.directories)
