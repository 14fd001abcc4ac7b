"""Copying with several threads: everything arrives, nothing else is touched, nobody is late."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

from spear_core.stores import _copying
from spear_core.stores._copying import copy_to

PIECE = 3 * mmap.PAGESIZE
MARGIN = 16


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copying, "_LEAST", PIECE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})


class Target:
    """Memory with a margin on both sides."""

    def __init__(self, size: int) -> None:
        self.memory = bytearray(b"." * (size + 2 * MARGIN))
        self._array = (ctypes.c_char * len(self.memory)).from_buffer(self.memory)
        self.address = ctypes.addressof(self._array) + MARGIN

    @property
    def content(self) -> bytes:
        margins = self.memory[:MARGIN] + self.memory[-MARGIN:]
        assert margins == b"." * 2 * MARGIN
        return bytes(self.memory[MARGIN:-MARGIN])


@pytest.mark.parametrize("cores", [1, 2, 9])
@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("pieces", [1, 2, 4, 7, 40])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_all_of_it_is_copied(
    kind: Callable[[bytes], Any],
    pieces: int,
    more: int,
    cores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    size = pieces * PIECE + more
    content, target = os.urandom(size), Target(size)
    copy_to(target.address, memoryview(kind(content)))
    assert target.content == content


@pytest.mark.parametrize("size", [1, PIECE, 4 * PIECE + 5])
def test_pages_of_a_file_need_not_be_there(size: int) -> None:
    content = os.urandom(size)
    with tempfile.TemporaryFile() as file:
        file.write(bytes(size))
        file.flush()
        with mmap.mmap(file.fileno(), size) as mapping:
            array = (ctypes.c_char * size).from_buffer(mapping)
            copy_to(ctypes.addressof(array), memoryview(content), touched=False)
            del array
            assert mapping[:] == content
        file.seek(0)
        assert file.read() == content


def test_nothing_is_copied() -> None:
    copy_to(Target(0).address, memoryview(b""))


def test_a_part_of_something_is_copied() -> None:
    content, target = os.urandom(5 * PIECE), Target(3 * PIECE)
    copy_to(target.address, memoryview(content)[PIECE : 4 * PIECE])
    assert target.content == content[PIECE : 4 * PIECE]


@pytest.mark.parametrize("why", ["never begins", "cannot be"])
def test_a_thread_that_does_not_come_is_not_waited_for(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(work: Any, deliver: Any) -> None:
        if why == "cannot be":
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", start)
    content, target = os.urandom(4 * PIECE), Target(4 * PIECE)
    copy_to(target.address, memoryview(content))
    assert target.content == content


def test_it_returns_when_nobody_writes_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its helpers copy one piece each, slowly; the source stays where it is meanwhile."""
    source, target = bytearray(os.urandom(6 * PIECE)), Target(6 * PIECE)
    gate, both, ended = threading.Event(), threading.Barrier(4), threading.Event()
    caller, memmove = [0], ctypes.memmove

    def slowly(to: int, start: int, size: int) -> None:
        if threading.get_ident() != caller[0]:
            both.wait(60)
            gate.wait(60)
        else:
            both.wait(60)  # until each helper has a piece, and the test knows
            monkeypatch.setattr(ctypes, "memmove", memmove)
        memmove(to, start, size)

    def copy() -> None:
        caller[0] = threading.get_ident()
        copy_to(target.address, memoryview(source))
        ended.set()

    monkeypatch.setattr(ctypes, "memmove", slowly)
    thread = threading.Thread(target=copy)
    thread.start()
    both.wait(60)
    assert not ended.wait(0.2)
    with pytest.raises(BufferError):
        source.clear()
    gate.set()
    thread.join(60)
    assert target.content == source
    source.clear()
