"""``spear logs``: of a task through the node, of the node itself from its files."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from spear_core.cli import _system_log
from spear_core.node.paths import StatePaths


@pytest.fixture
def task(spear: Any, node: Any) -> str:
    """A task that has written five entries and ended."""
    spear("invoke", "slow", "--async", "-i", "")
    for number in range(3):
        node.log("t-1", f"line {number}", source="stderr")
    node.log("t-1", "thinking", level="debug")
    node.log("t-1", "2 entries were dropped", level="warn", source="node")
    return "t-1"


def test_streams_as_written_and_the_rest_with_its_level(spear: Any, task: str) -> None:
    expected = "line 0\nline 1\nline 2\ndebug: thinking\nwarn: 2 entries were dropped\n"
    assert spear("logs", task).text == expected


def test_every_line_of_an_entry_says_what_it_is(spear: Any, node: Any, task: str) -> None:
    node.log("t-1", "first\nsecond", level="error")
    assert spear("logs", task).text.endswith("error: first\nerror: second\n")
    one, other = spear("logs", task, "--times").text.splitlines()[-2:]
    assert one.partition(" ")[2] == "error: first"
    assert other == one.replace("first", "second")


def test_following_ends_with_the_task(spear: Any, node: Any, task: str) -> None:
    node.end(task)
    assert spear("logs", task, "-f").text.count("\n") == 5


def test_times(spear: Any, task: str) -> None:
    first = spear("logs", task, "--times").text.splitlines()[0]
    clock = time.strftime("%H:%M:%S", time.localtime(1_700_000_000))
    assert first == f"{clock}.250 line 0"


def test_json_lines(spear: Any, task: str) -> None:
    entries = [json.loads(line) for line in spear("logs", task, "--json").text.splitlines()]
    assert [entry["seq"] for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0]["source"] == "stderr"


def test_a_task_or_the_system(spear: Any, node: Any) -> None:
    assert "name one task" in spear("logs").err
    assert spear("logs", "t-1", "--system").code == 2


def entry(message: str, **more: Any) -> str:
    return json.dumps({"ts": 0, "level": "info", "logger": "spear", "message": message, **more})


@pytest.fixture
def system_log(tmp_path: Path) -> Path:
    path = StatePaths(tmp_path / "st").system_log
    path.parent.mkdir(parents=True)
    path.write_text(entry("second") + "\nno json\n" + entry("bad", traceback="T\n") + "\n")
    path.with_name("system.log.1").write_text(entry("first") + "\n")
    return path


def test_the_system_log(spear: Any, system_log: Path, tmp_path: Path) -> None:
    lines = spear("logs", "--system", "--state-dir", str(tmp_path / "st")).text.splitlines()
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(0))
    assert lines == [
        f"{day} info    first",
        f"{day} info    second",
        "no json",
        f"{day} info    bad",
        "T",
    ]
    raw = spear("logs", "--system", "--json", "--state-dir", str(tmp_path / "st")).text
    assert json.loads(raw.splitlines()[0])["message"] == "first"


def test_no_system_log(spear: Any, tmp_path: Path) -> None:
    told = spear("logs", "--system", "--state-dir", str(tmp_path / "nothing"))
    assert told.code == 3
    assert "has a node run on this state directory?" in told.err


def test_following_the_system_log_through_a_rotation(
    spear: Any, system_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of whoever writes comes while it waits for more, having read what there was."""

    def write() -> Iterator[None]:
        with system_log.open("a") as file:
            file.write(entry("half"))
            file.flush()
            yield
            file.write("\n" + entry("late") + "\n")
        system_log.rename(system_log.with_name("system.log.1"))
        yield
        system_log.write_text(entry("fresh") + "\n")
        yield
        yield  # by now it has found the new file, and reads it next
        os.kill(os.getpid(), signal.SIGINT)

    writing = write()

    async def step(seconds: float) -> None:
        next(writing, None)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(_system_log, "trio", SimpleNamespace(sleep=step))
    told = spear("logs", "--system", "-f", "--state-dir", str(tmp_path / "st"))
    assert told.code == 130
    messages = [line.split()[-1] for line in told.text.splitlines()]
    assert messages[-3:] == ["half", "late", "fresh"]
