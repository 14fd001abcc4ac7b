"""Task logs: files, followers, limits and bad disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from spear_core.api import LogChunk, LogConfig
from spear_core.node._task_log import TaskLog, TaskLogDirectory


@pytest.fixture
def directory(tmp_path: Path) -> TaskLogDirectory:
    return TaskLogDirectory(tmp_path / "logs", max_bytes=10_000, warn=pytest.fail)


def messages(chunk: LogChunk) -> list[str]:
    return [entry.message for entry in chunk.entries]


async def test_file_and_reader_know_which_trace_an_entry_belongs_to(
    directory: TaskLogDirectory, tmp_path: Path
) -> None:
    log = directory.open("t-1")
    log.append("e-1", "one", level="info", source="guest", trace_id="ab" * 16)
    two = 'two,"trace_id":""'
    log.append("e-1", two, level="info", source="guest")
    lines = [json.loads(x) for x in (tmp_path / "logs" / "t-1.log").read_text().splitlines()]
    assert (lines[0]["message"], lines[0]["trace_id"]) == ("one", "ab" * 16)
    assert "trace_id" not in lines[1]
    entries = (await log.read(0, wait=True)).entries
    assert [(e.message, e.trace_id) for e in entries] == [("one", "ab" * 16), (two, "")]


async def test_entries_come_back_in_order_and_whole(directory: TaskLogDirectory) -> None:
    log = directory.open("t-1")
    log.append("e-1", "one\n", level="info", source="guest")
    log.append("e-1", 'zwei "ü"\nlines', level="warn", source="stderr")
    chunk = await log.read(0, wait=True)
    assert messages(chunk) == ["one", 'zwei "ü"\nlines']
    assert [(e.seq, e.level, e.source, e.execution_id) for e in chunk.entries] == [
        (1, "info", "guest", "e-1"),
        (2, "warn", "stderr", "e-1"),
    ]
    assert not chunk.finished
    log.close()
    rest = await log.read(chunk.cursor, wait=True)
    assert rest == LogChunk(entries=(), cursor=chunk.cursor, finished=True)


def test_a_task_that_logs_nothing_makes_no_file(
    directory: TaskLogDirectory, tmp_path: Path
) -> None:
    log = directory.open("t-1")
    log.close()
    log.remove()
    assert list((tmp_path / "logs").iterdir()) == []


async def test_a_follower_waits_for_the_next_entry_and_for_the_end(
    directory: TaskLogDirectory,
) -> None:
    log = directory.open("t-1")
    seen: list[str] = []

    async def follow() -> None:
        cursor, finished = 0, False
        while not finished:
            chunk = await log.read(cursor, wait=True)
            seen.extend(messages(chunk))
            cursor, finished = chunk.cursor, chunk.finished

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for number in range(3):
                await trio.testing.wait_all_tasks_blocked()
                log.append("e", str(number), level="info", source="guest")
            await trio.testing.wait_all_tasks_blocked()
            assert seen == ["0", "1", "2"]
            log.close()


async def test_a_long_log_comes_in_pieces(tmp_path: Path) -> None:
    directory = TaskLogDirectory(tmp_path, max_bytes=1 << 24, warn=pytest.fail)
    log = directory.open("t-1")
    for number in range(2500):
        log.append("e", str(number), level="info", source="guest")
    log.append("e", "x" * 3_000_000, level="info", source="guest")
    log.close()
    cursor, seen, finished, rounds = 0, 0, False, 0
    while not finished:
        chunk = await log.read(cursor, wait=False)
        cursor, seen, finished = chunk.cursor, seen + len(chunk.entries), chunk.finished
        rounds += 1
        assert rounds < 10
    assert seen == 2501


async def test_entries_over_the_limit_are_counted_and_the_reader_is_told(
    directory: TaskLogDirectory,
) -> None:
    log = directory.open("t-1")
    for _ in range(200):
        log.append("e", "x" * 100, level="info", source="guest")
    log.close()
    chunk = await log.read(0, wait=False)
    assert chunk.finished
    *kept, last = chunk.entries
    assert last.source == "node"
    assert f"{200 - len(kept)} log entries were dropped" in last.message
    assert "max_task_log_bytes" in last.message


FULL = """
import sys, resource, signal
from pathlib import Path
import trio
from spear_core.node._task_log import TaskLog, TaskLogDirectory

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log = TaskLogDirectory(Path(sys.argv[1]), max_bytes=1 << 20, warn=print).open("t-1")
for _ in range(50):
    log.append("e", "x" * 100, level="info", source="guest")
log.close()
chunk = trio.run(lambda: log.read(0, wait=False))
print(len(chunk.entries), chunk.entries[-1].message)
"""


def test_a_file_that_cannot_grow_keeps_whole_lines(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel write a part of a line and then fail, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    count, _, message = done.stdout.partition(" ")
    content = (tmp_path / "t-1.log").read_bytes()
    assert content.endswith(b"\n")
    assert content.count(b"\n") == int(count) - 1 > 0
    assert "log entries were dropped" in message


async def test_a_missing_directory_costs_entries_only(tmp_path: Path) -> None:
    directory = TaskLogDirectory(tmp_path / "logs", max_bytes=1000, warn=pytest.fail)
    os.rmdir(tmp_path / "logs")
    log = directory.open("t-1")
    log.append("e", "lost", level="info", source="guest")
    log.close()
    (entry,) = (await log.read(0, wait=False)).entries
    assert "1 log entries were dropped" in entry.message


def test_logs_of_an_earlier_run_are_readable_and_pruned(
    directory: TaskLogDirectory, tmp_path: Path
) -> None:
    for number in range(4):
        log = directory.open(f"t-{number}")
        log.append("e", f"from {number}", level="info", source="guest")
        log.close()
        os.utime(tmp_path / f"logs/t-{number}.log", (number, number))
    with open(tmp_path / "logs/t-3.log", "ab") as file:
        file.write(b'{"seq": 2, "ts": 1.')
    again = TaskLogDirectory(tmp_path / "logs", max_bytes=1000, warn=pytest.fail)
    again.prune(2)
    assert again.read_old("t-1", 0) is None
    old = again.read_old("t-3", 0)
    assert old is not None
    assert messages(old) == ["from 3"]
    assert again.read_old("../logs/t-3", 0) is None


async def _follow(log: TaskLog, *, at_most: int = 5) -> list[str]:
    """Every message until the end, in a few reads rather than for ever."""
    seen: list[str] = []
    cursor = 0
    for _ in range(at_most):
        chunk = await log.read(cursor, wait=True)
        seen += messages(chunk)
        if chunk.finished:
            return seen
        cursor = chunk.cursor
    raise AssertionError(f"no end after {at_most} reads: {seen}")


async def test_a_follower_of_a_file_that_somebody_cut_or_removed_comes_to_its_end(
    directory: TaskLogDirectory, tmp_path: Path
) -> None:
    for name in ("cut", "removed"):
        log = directory.open(name)
        log.append("e-1", "hello", level="info", source="guest")
        file = tmp_path / "logs" / f"{name}.log"
        if name == "cut":
            os.truncate(file, 5)
        else:
            file.unlink()
        log.close()
        assert "hello" not in await _follow(log)
        log.remove()


async def test_who_follows_a_task_that_is_forgotten_is_told(directory: TaskLogDirectory) -> None:
    log = directory.open("t-1")
    log.append("e-1", "hello", level="info", source="guest")
    log.remove()
    (remark,) = await _follow(log)
    assert "cannot be read" in remark


async def test_a_directory_that_vanishes_costs_the_log_only(
    directory: TaskLogDirectory, tmp_path: Path
) -> None:
    log = directory.open("t-1")
    log.append("e-1", "hello", level="info", source="guest")
    (tmp_path / "logs" / "t-1.log").unlink()
    (tmp_path / "logs").rmdir()
    (tmp_path / "logs").write_text("no directory any more")
    log.remove()


async def test_text_that_is_no_unicode_is_kept_as_far_as_it_goes(
    directory: TaskLogDirectory,
) -> None:
    log = directory.open("t-1")
    log.append("e-1", "a\udcffb", level="info", source="guest")
    assert messages(await log.read(0, wait=True)) == ["a?b"]
    log.close()


@pytest.mark.parametrize("padding", [0, 1 << 20])
def test_an_old_log_that_a_crash_cut_has_an_end(
    directory: TaskLogDirectory, tmp_path: Path, padding: int
) -> None:
    whole = b'{"seq":1,"ts":1,"level":"info","source":"guest","message":"m","execution_id":"e"}\n'
    (tmp_path / "logs" / "t-1.log").write_bytes(whole + b'{"seq":2,"message":"' + b"x" * padding)
    seen: list[str] = []
    cursor, finished = 0, False
    for _ in range(3):
        chunk = directory.read_old("t-1", cursor)
        assert chunk is not None
        seen += messages(chunk)
        cursor, finished = chunk.cursor, chunk.finished
    assert (seen, finished) == (["m"], True)


# --- all logs together --------------------------------------------------------------------------


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.log"))


@pytest.fixture
def small(tmp_path: Path) -> TaskLogDirectory:
    """Room for three logs as :func:`fill` makes them."""
    return TaskLogDirectory(
        tmp_path / "logs", max_bytes=10_000, max_total_bytes=3_500, warn=pytest.fail
    )


def fill(log: TaskLog, *, close: bool = True) -> TaskLog:
    """About a thousand bytes."""
    log.append("e", "x" * 900, level="info", source="guest")
    if close:
        log.close()
    return log


async def test_the_first_that_finished_makes_room(small: TaskLogDirectory, tmp_path: Path) -> None:
    running = fill(small.open("t-0"), close=False)
    logs = [fill(small.open(f"t-{number}")) for number in (1, 2, 3, 4)]
    assert total(tmp_path / "logs") <= 3_500
    assert {path.stem for path in (tmp_path / "logs").iterdir()} == {"t-0", "t-3", "t-4"}
    for log in logs[:2]:
        chunk = await log.read(0, wait=True)
        assert chunk.finished
        assert "deleted to make room for newer ones (logs.max_total_bytes)" in messages(chunk)[0]
    assert messages(await logs[3].read(0, wait=True)) == ["x" * 900]
    logs[0].remove()  # its task is forgotten: nothing is counted twice
    logs[2].remove()
    logs[2].remove()
    fill(small.open("t-5"))
    assert {path.stem for path in (tmp_path / "logs").iterdir()} == {"t-0", "t-4", "t-5"}
    fill(running)
    assert len(messages(await running.read(0, wait=True))) == 2


async def test_where_only_unfinished_ones_are_left_entries_are_dropped(
    small: TaskLogDirectory, tmp_path: Path
) -> None:
    logs = [fill(small.open(f"t-{number}"), close=False) for number in range(4)]
    assert total(tmp_path / "logs") <= 3_500
    logs[0].close()
    fill(logs[3])
    remark = messages(await logs[3].read(0, wait=True))[-1]
    assert remark.startswith("1 log entries were dropped: all task logs together may have 3500 ")
    assert not (tmp_path / "logs" / "t-0.log").exists()


async def test_what_an_earlier_run_left_counts_and_goes_first(
    small: TaskLogDirectory, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        fill(small.open(f"t-{number}"))
        os.utime(tmp_path / f"logs/t-{number}.log", (number, number))
    again = TaskLogDirectory(
        tmp_path / "logs", max_bytes=10_000, max_total_bytes=3_500, warn=pytest.fail
    )
    kept = again.reopen("t-1", finished=True)  # its task is known, the others' are not
    kept.offer()
    again.prune(10, known={"t-1"})
    fill(again.open("t-4"))
    assert {path.stem for path in (tmp_path / "logs").iterdir()} == {"t-1", "t-3", "t-4"}
    fill(again.open("t-5"))
    fill(again.open("t-6"))
    assert {path.stem for path in (tmp_path / "logs").iterdir()} == {"t-4", "t-5", "t-6"}
    again.reconfigure(LogConfig(max_total_bytes=1_500))
    assert {path.stem for path in (tmp_path / "logs").iterdir()} == {"t-6"}
    assert again.read_old("t-2", 0) is None


async def test_a_task_that_goes_on_after_a_restart_keeps_its_log(small: TaskLogDirectory) -> None:
    postponed = fill(small.open("t-0"), close=False)
    postponed.close(final=False)
    for number in range(1, 6):
        fill(small.open(f"t-{number}"))
    assert messages(await postponed.read(0, wait=True)) == ["x" * 900]


@pytest.mark.parametrize("finished", [True, False])
async def test_a_log_that_cannot_be_taken_up_says_so_and_stops_nobody(
    directory: TaskLogDirectory, tmp_path: Path, finished: bool
) -> None:
    (tmp_path / "logs" / "t-1.log").mkdir()
    log = directory.reopen("t-1", finished=finished)
    log.append("e-1", "more", level="info", source="guest")
    log.close()
    chunk = await log.read(0, wait=True)
    assert chunk.finished
    assert "cannot be read" in messages(chunk)[0]
    assert "t-1.log: Is a directory" in messages(chunk)[0]
