"""Pipes of running code, opened anew."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spear_core.api import OwnedFd
from spear_core.builtins._guest_pipes import open_guest_pipe, takes_pipes
from spear_core.errors import InvalidRequestError


def test_an_open_file_of_our_own_that_does_not_block() -> None:
    """Whoever has the other one cannot make ours block, and what is read is the same pipe."""
    assert takes_pipes()
    reading, writing = os.pipe()
    theirs = os.dup(reading)
    with open_guest_pipe(OwnedFd(reading)) as pipe:
        fcntl.fcntl(theirs, fcntl.F_SETFL, 0)
        with pytest.raises(BlockingIOError):
            os.read(pipe, 1)
        assert not os.get_inheritable(pipe)
        os.write(writing, b"value")
        assert os.read(pipe, 10) == b"value"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    os.close(theirs)
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"nobody reads it")
    os.close(writing)


def named(folder: Path) -> int:
    os.mkfifo(folder / "pipe:[1]")
    return os.open(folder / "pipe:[1]", os.O_RDWR)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: os.open(folder, os.O_RDONLY),
        lambda folder: os.open("/dev/zero", os.O_RDONLY),
        lambda folder: os.memfd_create("pipe:[1]"),
        lambda folder: os.eventfd(0),
        named,
    ],
    ids=["directory", "zeros", "memory", "event", "named"],
)
def test_nothing_but_pipes(tmp_path: Path, make: Callable[[Path], int]) -> None:
    with (
        OwnedFd(make(tmp_path)) as fd,
        pytest.raises(InvalidRequestError, match="no pipe"),
        open_guest_pipe(fd),
    ):
        pytest.fail("it was opened")
