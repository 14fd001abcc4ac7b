"""Nobody can write to a file that was lent."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spear_core.api import ObjectStat, ObjectView, OwnedFd
from spear_core.builtins import _read_only
from spear_core.builtins._lent_files import open_lent_files
from spear_core.builtins._read_only import ReadOnlyFolders


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "blob"
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def view_of(fd: int) -> ObjectView:
    stat = ObjectStat(
        key="k",
        size=7,
        version=1,
        revision=1,
        sha256="",
        created_at=0,
        updated_at=0,
        content_type="",
        refs=0,
        pinned=False,
    )
    return ObjectView(stat=stat, data=memoryview(b"content"), fd=fd)


def attempts(fd: int) -> list[str]:
    """What its owner's process can do with it."""
    told = []
    for attempt in (
        lambda: os.fchmod(fd, 0o666),
        lambda: os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR)),
        lambda: os.pwrite(fd, b"changed", 0),
        lambda: os.ftruncate(fd, 0),
    ):
        try:
            attempt()
            told.append("done")
        except OSError:
            told.append("refused")
    return told


async def lent(fd: int) -> OwnedFd:
    with open_lent_files() as files:
        first = await files.lend(view_of(fd))
        first.close()
        return await files.lend(view_of(fd))


async def test_a_file_is_lent_by_a_mount_that_cannot_be_written(file: int) -> None:
    assert attempts(file)[:2] == ["done", "done"]  # what the mount is for
    with await lent(file) as fd:
        if not os.path.samestat(os.fstat(fd.fileno()), os.fstat(file)):
            pytest.skip("this machine has no mounts for us, not even in a namespace")
        assert attempts(fd.fileno()) == ["refused"] * 4
        os.fchmod(file, 0o666)
        assert attempts(fd.fileno()) == ["refused"] * 4
        assert os.pread(fd.fileno(), 10, 0) == b"content"


@pytest.mark.parametrize("why", ["no mounts", "deleted", "another file"])
async def test_else_a_sealed_copy_is_lent(
    file: int, why: str, tmp_path: Path, monkeypatch: Any
) -> None:
    if why == "no mounts":
        monkeypatch.setattr(_read_only, "_cloned", lambda folder: None)
    else:
        (tmp_path / "blob").unlink()
    if why == "another file":
        (tmp_path / "blob").write_bytes(b"foreign")
    with await lent(file) as fd:
        assert not os.path.samestat(os.fstat(fd.fileno()), os.fstat(file))
        assert os.pread(fd.fileno(), 10, 0) == b"content"
        assert "done" not in attempts(fd.fileno())[2:]
        seals = fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_WRITE
        assert seals & fcntl.F_SEAL_SHRINK


async def test_sealed_memory_is_lent_as_it_is() -> None:
    memory = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with OwnedFd(memory):
        os.write(memory, b"content")
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        with await lent(memory) as fd:
            assert os.path.samestat(os.fstat(fd.fileno()), os.fstat(memory))


@pytest.mark.parametrize("missing", [0, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK])
async def test_memory_that_only_its_store_could_write_is_lent_as_it_is(missing: int) -> None:
    """Sealed for whoever has no mapping yet (``F_SEAL_FUTURE_WRITE``), and in its size."""
    memory = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with OwnedFd(memory):
        os.write(memory, b"content")
        seals = 0x10 | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        try:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals & ~missing)
        except OSError:
            pytest.skip("Linux knows that seal since 5.1")
        with await lent(memory) as fd:
            same = os.path.samestat(os.fstat(fd.fileno()), os.fstat(memory))
            assert same is (missing == 0)


def test_a_child_makes_the_mount_where_the_node_may_not(file: int, monkeypatch: Any) -> None:
    def refused(folder: str) -> int:
        raise PermissionError

    probe = [sys.executable, "-c", "import ctypes; exit(ctypes.CDLL(None).unshare(0x10000000))"]
    if subprocess.run(probe, check=False).returncode:
        pytest.skip("no user namespaces here")
    monkeypatch.setattr(_read_only, "_clone", refused)
    gc.collect()  # what an earlier test left to it must not go in the middle of this one
    before = len(os.listdir("/proc/self/fd"))
    folders = ReadOnlyFolders()
    assert not folders.knows(file)
    found = folders.reopen(file)
    assert found is not None
    assert folders.knows(file)
    assert attempts(found) == ["refused"] * 4
    os.close(found)
    folders.close()
    assert len(os.listdir("/proc/self/fd")) == before
