"""Which memory is used again, how much of it waits, and what is given back."""

from __future__ import annotations

import errno
import gc
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.builtins._memory_segment import Segment
from spear_core.builtins._recycled_memory import RecycledMemory

KIB = 1 << 10
MOST = 1 << 40


def inodes() -> set[int]:
    """Of all memory of values that this process has open or mapped."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if "spear-object" in os.readlink(entry):
                found.add(os.stat(entry).st_ino)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:spear-object" in line:
            found.add(int(line.split()[4]))
    return found


def memory(
    most_bytes: int = MOST, *, most_files: int = 100, room: Callable[[], int] = lambda: MOST
) -> RecycledMemory:
    return RecycledMemory(most_bytes=most_bytes, most_files=most_files, room=room)


def taken(pool: RecycledMemory, size: int) -> Segment:
    """A segment with a value of that size in it, which somebody has seen."""
    segment = pool.take(size)
    assert segment is not None
    segment.write(0, memoryview(bytes(size)))
    segment.show(size)
    return segment


def back(pool: RecycledMemory, *sizes: int) -> list[Segment]:
    """Segments of these sizes, given back in this order."""
    segments = [taken(pool, size) for size in sizes]
    for segment in segments:
        pool.put_back(segment)
    return segments


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Any:
    gc.collect()
    before = inodes()
    yield
    assert inodes() <= before


def test_a_value_of_about_the_size_gets_it() -> None:
    pool = memory()
    (segment,) = back(pool, 500 * KIB)
    assert pool.waiting == 500 * KIB
    others = [pool.take(size) for size in (300 * KIB, 5000 * KIB, None)]
    assert segment not in others
    assert pool.take(490 * KIB) is segment
    assert pool.waiting == 0
    others.append(pool.take(490 * KIB))
    assert segment not in others
    for each in (segment, *others):
        assert each is not None
        pool.put_back(each)
    pool.clear()


def test_the_last_one_is_the_first_to_be_used() -> None:
    pool = memory()
    first, second = back(pool, 100 * KIB, 100 * KIB)
    assert [pool.take(100 * KIB), pool.take(100 * KIB)] == [second, first]
    pool.put_back(first)
    pool.put_back(second)
    assert pool.clear()
    assert not pool.clear()


def test_what_was_lent_or_never_filled_is_closed() -> None:
    pool = memory()
    lent = taken(pool, 100 * KIB)
    os.close(lent.lend())
    pool.put_back(lent)
    empty = pool.take(100 * KIB)
    assert empty is not None
    pool.put_back(empty)
    sealed = os.memfd_create("spear-object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    pool.put_back(pool.adopt(sealed, 1))
    assert pool.waiting == 0


@pytest.mark.parametrize("limit", ["most_bytes", "room"])
def test_so_much_waits_and_the_oldest_goes(limit: str) -> None:
    pool = memory(**{limit: 300 * KIB if limit == "most_bytes" else lambda: 300 * KIB})  # type: ignore[arg-type]
    third = back(pool, 100 * KIB, 100 * KIB, 100 * KIB)[-1]
    assert pool.waiting == 300 * KIB
    (larger,) = back(pool, 200 * KIB)
    assert pool.waiting == 300 * KIB
    back(pool, 301 * KIB)  # too much by itself, and no reason to drop others
    assert [pool.take(100 * KIB), pool.take(200 * KIB)] == [third, larger]
    pool.put_back(third)
    pool.put_back(larger)
    pool.clear()


def test_nothing_waits_where_nothing_may() -> None:
    pool = memory(0)
    back(pool, 100 * KIB)
    assert pool.waiting == 0


def test_less_room_takes_the_oldest_away() -> None:
    room = 300 * KIB
    pool = memory(room=lambda: room)
    *_, last = back(pool, 100 * KIB, 100 * KIB, 100 * KIB)
    room = 150 * KIB
    assert pool.waiting == 300 * KIB
    pool.trim()
    assert pool.waiting == 100 * KIB
    assert pool.take(100 * KIB) is last
    pool.put_back(last)
    room = -1
    pool.trim()
    assert pool.waiting == 0


def test_values_need_descriptors_more() -> None:
    pool = memory(most_files=3)
    back(pool, 100 * KIB, 200 * KIB, 300 * KIB)
    used = [taken(pool, 1000 * KIB)]
    assert pool.waiting == 500 * KIB  # the oldest one went
    used += [taken(pool, 1000 * KIB), taken(pool, 1000 * KIB)]
    assert pool.waiting == 0
    assert pool.take(100 * KIB) is None
    assert not pool.too_many()
    assert pool.too_many(1)
    for segment in used:
        pool.put_back(segment)
    assert not pool.too_many(1)
    pool.clear()


def test_a_process_without_descriptors_gives_up_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = memory()
    back(pool, 100 * KIB)
    create, free = os.memfd_create, 0

    def create_if_free(name: str, flags: int) -> int:
        if not free and pool.waiting:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", create_if_free)
    segment = pool.take(1000 * KIB)
    assert segment is not None
    assert pool.waiting == 0
    pool.put_back(segment)


def test_much_memory_is_closed_in_a_thread_but_not_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Callable[[], None]] = []
    start = lambda work, deliver: started.append(work)  # noqa: E731
    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", start)
    pool = memory(8 << 20)
    before = inodes()
    back(pool, 5 << 20, 6 << 20)
    assert len(started) == 1
    assert len(inodes() - before) == 2
    started.pop()()
    assert len(inodes() - before) == 1
    assert pool.clear()
    assert (started, inodes() - before) == ([], set())


def test_without_threads_it_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refuse)
    back(memory(0), 5 << 20)


def test_it_may_come_back_in_the_midst_of_anything() -> None:
    """As when Python's collector finds the last view of a value while the lock is held."""
    extra: list[Segment] = []

    def room() -> int:
        while extra:
            pool.put_back(extra.pop())
        return MOST

    pool = memory(room=room)
    extra += [taken(pool, 100 * KIB), taken(pool, 100 * KIB)]
    back(pool, 300 * KIB)
    assert pool.waiting == 500 * KIB
    extra.append(taken(pool, 50 * KIB))
    pool.trim()
    assert pool.waiting == 550 * KIB
    pool.clear()


def test_what_comes_back_when_all_was_sorted_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = memory()
    sort, extra = pool._sort, [taken(pool, 100 * KIB)]

    def sort_and_then(*arguments: Any) -> list[Segment]:
        sorted_out = sort(*arguments)
        while extra:
            pool.put_back(extra.pop())
        return sorted_out

    monkeypatch.setattr(pool, "_sort", sort_and_then)
    back(pool, 300 * KIB)
    assert pool.waiting == 400 * KIB
    pool.clear()


def test_threads_never_have_the_same_one() -> None:
    pool = memory(2000 * KIB, most_files=12)
    failed: list[str] = []

    def work(number: int) -> None:
        chosen = random.Random(number)
        for turn in range(300):
            size = chosen.choice((70, 100, 150, 400)) * KIB
            segment = pool.take(size)
            if segment is None:
                continue
            mine = number.to_bytes(4, "big") + turn.to_bytes(4, "big")
            segment.write(0, memoryview(mine * (size // 8)))
            window = memoryview(segment.show(size)).cast("B")[:size]
            if chosen.random() < 0.2:
                pool.trim()
            if bytes(window[:8]) != mine or bytes(window[-8:]) != mine:
                failed.append(f"{number}, {turn}")
            window.release()
            pool.put_back(segment)

    threads = [threading.Thread(target=partial(work, number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert pool.waiting <= 2000 * KIB
    assert not pool.too_many(1)
    pool.clear()
    assert pool.waiting == 0


async def test_what_waits_for_long_is_given_back(autojump_clock: Any) -> None:
    pool = memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.sweep_idle, 10.0)
        await trio.sleep(35)
        back(pool, 100 * KIB)
        await trio.sleep(9)
        assert pool.waiting == 100 * KIB
        back(pool, 300 * KIB)
        used = taken(pool, 100 * KIB)
        pool.put_back(used)  # in use in between
        await trio.sleep(9)
        assert pool.waiting == 400 * KIB
        await trio.sleep(12)
        assert pool.waiting == 0
        back(pool, 100 * KIB)
        await trio.sleep(21)
        assert pool.waiting == 0
        nursery.cancel_scope.cancel()


async def test_an_idle_store_does_not_wake_up(mock_clock: trio.testing.MockClock) -> None:
    pool = memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.sweep_idle, 10.0)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        nursery.cancel_scope.cancel()


async def test_all_of_it_is_given_back_at_the_end() -> None:
    pool = memory()
    before = inodes()
    late = taken(pool, 5 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.sweep_idle, 10.0)
        await trio.testing.wait_all_tasks_blocked()
        back(pool, 100 * KIB, 5 << 20)
        nursery.cancel_scope.cancel()
    assert len(inodes() - before) == 1
    pool.put_back(late)
    assert inodes() <= before
