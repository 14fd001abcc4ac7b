"""Memory that holds one value after the other, and what others can see and do of it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spear_core.builtins._memory_segment import Segment, room_for
from spear_core.stores import SEALS
from spear_core.stores._copying import copy_to

PAGE = mmap.PAGESIZE
SECRET = b"secret" * 100_000
VALUE = b"value" * 100_001


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.new()
    yield made
    made.close()


def shown(segment: Segment, value: bytes) -> memoryview:
    """A view of the value, which is put into the segment."""
    segment.write(0, memoryview(value))
    return memoryview(segment.show(len(value))).cast("B")[: len(value)].toreadonly()


def seals(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS)


def test_a_size_has_room_and_at_most_an_eighth_too_much() -> None:
    sizes = [*range(1, 3 * PAGE, 777), *(int(PAGE * 1.03**n) for n in range(500))]
    for size in sizes:
        room = room_for(size)
        assert size <= room < size + max(PAGE, size / 8 + 1)
        assert room % PAGE == 0
        assert room_for(room) == room
    rooms = {room_for(size) for size in range(1 << 20, 2 << 20, 99)}
    assert len(rooms) == 9


def test_values_follow_each_other_in_the_same_pages(segment: Segment) -> None:
    inode = os.fstat(segment.fd).st_ino
    for value in (VALUE, SECRET[:510_000], VALUE[:-7], VALUE + b"and more" * 100):
        assert shown(segment, value) == value
        assert room_for(len(value)) == segment.room
    assert os.fstat(segment.fd).st_ino == inode


def test_pages_are_touched_once_before_they_are_written_to(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []

    def note(target: int, source: memoryview, *, touched: bool = True) -> None:
        told.append((len(source), touched))
        copy_to(target, source, touched=touched)

    monkeypatch.setattr("spear_core.builtins._memory_segment.copy_to", note)
    shown(segment, VALUE)
    for size in (400_000, 300_000, 500_000, 500_000):
        assert shown(segment, SECRET[:size]) == SECRET[:size]
    assert told == [(400_000, False), (300_000, True), (500_000, False), (500_000, True)]


def huge(address_of: str = "spear-object") -> int:
    """Bytes of values that are mapped by huge pages."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = address_of in line
        elif ours and line.startswith("ShmemPmdMapped:"):
            found += int(line.split()[1]) << 10
    return found


def test_what_is_used_again_and_again_gets_huge_pages(segment: Segment) -> None:
    size = (5 << 20) + 1000
    contents = [bytes([65 + number]) * (size - number) for number in range(6)]
    got = 0
    for content in contents:
        assert shown(segment, content) == content
        got = max(got, huge())
    view = shown(segment, contents[0])
    fd = segment.lend()
    assert os.pread(fd, size + 1, 0) == contents[0] == view
    os.close(fd)
    if not got:
        pytest.skip("no huge pages here (Linux 6.1)")
    assert got == 4 << 20


def test_no_huge_pages_are_no_error(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def refuse(*arguments: int) -> int:
        told.append(arguments[1:])
        return -1

    monkeypatch.setattr("spear_core.builtins._memory_segment._madvise", refuse)
    for number in range(6):
        content = bytes([65 + number]) * (5 << 20)
        assert shown(segment, content) == content
    assert told == [(4 << 20, 25)]


def test_addresses_are_given_back() -> None:
    def addresses() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE

    before = addresses()
    for _ in range(20):
        segment = Segment.new()
        segment.write(0, memoryview(VALUE))
        segment.show(20 << 20)
        segment.close()
    assert addresses() - before < 100 << 20


def test_pieces_are_written_behind_one_another(segment: Segment) -> None:
    """Over pages that are there and over new ones, and some again after an error."""
    shown(segment, SECRET[:550_000])
    content = os.urandom(580_000)
    for place in (0, 100_000, 540_000, 540_000, 560_000):
        end = {0: 100_000, 100_000: 540_000, 540_000: 560_000, 560_000: 580_000}[place]
        segment.write(place, memoryview(content)[place:end])
    assert memoryview(segment.show(580_000)).cast("B")[:580_000] == content
    assert segment.pages == 580_000


@pytest.mark.parametrize("used", [False, True])
def test_a_pipe_is_emptied_into_it(segment: Segment, used: bool) -> None:
    if used:
        shown(segment, SECRET)
    out, into = os.pipe()
    with os.fdopen(out, "rb"), os.fdopen(into, "wb", buffering=0) as writing:
        writing.write(VALUE[:50_000])
        assert segment.splice(0, out, 20_000) == 20_000
        assert segment.splice(20_000, out, 1 << 20) == 30_000
        with pytest.raises(BlockingIOError):
            segment.splice(50_000, out, 1)
    assert segment.pages == (len(SECRET) if used else 50_000)
    assert memoryview(segment.show(50_000)).cast("B")[:50_000] == VALUE[:50_000]


def test_a_lent_file_has_the_value_and_nothing_else(segment: Segment) -> None:
    """Nothing of what was there before it, not in its last page either."""
    shown(segment, SECRET)
    view = shown(segment, VALUE)
    fd = segment.lend()
    try:
        assert os.fstat(fd).st_size == len(VALUE)
        pages = -(-len(VALUE) // PAGE) * PAGE
        assert whole_pages(fd, pages) == VALUE + bytes(pages - len(VALUE))
        assert view == VALUE
    finally:
        os.close(fd)


def whole_pages(fd: int, size: int) -> bytes:
    """What a process sees that maps more than the file has."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(
        None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0)
    )
    found = ctypes.string_at(address, size)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return found


def test_nobody_can_change_what_was_lent(segment: Segment) -> None:
    view = shown(segment, VALUE)
    lent = segment.lend()
    again = os.open(f"/proc/self/fd/{lent}", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(lent, b"x", 0)
        for fd in (again, segment.fd):
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"x", 0)
            with pytest.raises(PermissionError):
                mmap.mmap(fd, len(VALUE))
            for size in (0, 2 * len(VALUE)):
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, size)
            assert libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(PAGE)) == -1
            with pytest.raises(PermissionError):
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0)
        assert view == VALUE
    finally:
        os.close(again)
        os.close(lent)


def test_each_lent_file_has_a_position_of_its_own(segment: Segment) -> None:
    shown(segment, VALUE)
    one, two = segment.lend(), segment.lend()
    try:
        os.lseek(one, 5, os.SEEK_SET)
        assert os.lseek(two, 0, os.SEEK_CUR) == 0
    finally:
        os.close(one)
        os.close(two)


def test_an_old_kernel_seals_what_is_mapped_for_reading_only(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.1. Whoever reads it meanwhile goes on."""
    control = fcntl.fcntl

    def old(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_ADD_SEALS and argument & 0x10:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return control(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", old)
    view = shown(segment, VALUE)
    os.close(segment.lend())
    assert seals(segment.fd) & SEALS == SEALS
    assert view == VALUE


def test_what_could_not_be_sealed_is_not_lent(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    shown(segment, SECRET)
    shown(segment, VALUE)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refuse)
        with pytest.raises(OSError, match="memory"):
            segment.lend()
    assert not segment.lent
    assert shown(segment, SECRET) == SECRET  # behind the end of the file there is nothing


def test_no_mapping_is_an_error(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    segment.write(0, memoryview(VALUE))
    with pytest.raises(OSError, match="memory"):
        segment.show(1 << 62)
    assert not segment.room
