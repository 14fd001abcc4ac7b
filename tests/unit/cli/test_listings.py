"""``spear ps``, ``artifacts``, ``instances``, ``status``: for people and for programs."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from spear_core.cli._listing import age, duration, size


def test_ps_lists_the_newest_first_and_says_what_went_wrong(spear: Any, node: Any) -> None:
    spear("invoke", "echo", "-i", "x")
    spear("invoke", "fail", "-i", "x")
    lines = spear("ps").text.splitlines()
    titles = "TASK FUNCTION STATE AGE TOOK CPU MEMORY INSTANCE ERROR"
    assert lines[0].split() == titles.split()
    assert lines[1].split() == [
        "t-2",
        "fail@1",
        "failed",
        "65s",
        "1.5",
        "s",
        "500",
        "ms",
        "-",
        "i-1",
        "it",
        "broke",
    ]
    assert lines[2].split() == [
        "t-1",
        "echo@1",
        "completed",
        "65s",
        "1.5",
        "s",
        "500",
        "ms",
        "-",
        "i-1",
    ]
    assert len(spear("ps", "-n", "1").text.splitlines()) == 2


def test_ps_shows_parents_and_attempts_where_there_are_any(spear: Any, node: Any) -> None:
    for _ in range(3):
        spear("invoke", "echo", "-i", "x")
    node.tasks["t-2"] = attrs.evolve(node.tasks["t-2"], parent_task_id="t-1", attempt=3)
    header, _, child, _ = spear("ps").text.splitlines()
    assert header.split()[:5] == ["TASK", "PARENT", "FUNCTION", "STATE", "ATTEMPT"]
    assert child.split()[:5] == ["t-2", "t-1", "echo@1", "completed", "3"]
    _, only = spear("ps", "--children", "t-1").text.splitlines()
    assert only == child
    none = spear("ps", "--children", "t-2")
    assert (none.out, none.err) == (b"", "t-2 has started no task that is still kept\n")
    assert spear("ps", "--children", "t-9").code == 3


def test_ps_as_json(spear: Any, node: Any) -> None:
    spear("invoke", "echo", "-i", "x")
    (task,) = json.loads(spear("ps", "--json").out)
    assert (task["task_id"], task["state"]) == ("t-1", "completed")


def test_nothing_to_list(spear: Any, node: Any) -> None:
    told = spear("ps")
    assert (told.code, told.out, told.err) == (0, b"", "no tasks yet\n")
    assert json.loads(spear("ps", "--json").out) == []


def test_artifacts(spear: Any, node: Any, tmp_path: Any) -> None:
    (tmp_path / "hello.sh").write_text("#!/bin/sh\n")
    spear("deploy", str(tmp_path / "hello.sh"))
    header, line = spear("artifacts").text.splitlines()
    assert header.split()[:5] == ["NAME", "VERSION", "LATEST", "STATE", "RUNTIME"]
    assert line.split() == [
        *(
            "hello",
            "1",
            "*",
            "ready",
            "process",
            "command",
            "hello.sh",
            "10",
            "B",
            "2h",
            "1",
            "ab" * 6,
        )
    ]
    (shown,) = json.loads(spear("artifacts", "--json").out)
    assert shown["digest"] == "ab" * 32


def test_deleting_artifacts(spear: Any, node: Any) -> None:
    assert spear("artifacts", "delete", "hello@3").text == "deleted 1 version of hello\n"
    assert spear("artifacts", "delete", "hello").text == "deleted 2 versions of hello\n"
    assert node.deleted == [("hello", 3), ("hello", None)]
    told = spear("artifacts", "delete", "hello@")
    assert told.code == 2
    assert "write hello@1" in told.err


def test_instances(spear: Any, node: Any) -> None:
    line = spear("instances").text.splitlines()[1]
    assert line.split() == [
        *("i-1", "echo@1", "process", "ready", "2d", "0/1", "-", "7", "-"),
        *("250", "ms", "3.0", "MiB"),
    ]
    (shown,) = json.loads(spear("instances", "--json").out)
    assert (shown["state"], shown["pid"]) == ("ready", None)


def test_status(spear: Any, node: Any) -> None:
    text = spear("status").text
    assert "n-1 (spear 0.1.0, pid 4242)" in text
    assert "1 running, 2 queued" in text
    assert "runtime wasm healthy ok" in text
    assert json.loads(spear("status", "--json").out)["runtimes"][0]["name"] == "wasm"


def test_cancel(spear: Any, node: Any) -> None:
    spear("invoke", "slow", "--async", "-i", "")
    spear("invoke", "echo", "-i", "")
    told = spear("cancel", "t-1", "t-9", "t-2", "--reason", "enough")
    assert told.code == 3
    assert told.text == "t-1 cancelled\nt-2 completed (it had ended already)\n"
    assert "t-9" in told.err
    assert node.cancelled == [("t-1", "enough")]


def test_a_table_on_a_terminal(
    spear: Any, node: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spear("invoke", "echo", "-i", "x")
    monkeypatch.setenv("COLUMNS", "120")
    shown = terminal(lambda: spear("ps"))
    assert "\x1b[1mTASK" in shown
    assert "t-1" in shown


def test_a_name_stays_whole_on_a_narrow_terminal(
    spear: Any, node: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        spear("invoke", "fail", "-i", "x")
    monkeypatch.setenv("COLUMNS", "36")
    assert "t-100 " in terminal(lambda: spear("ps", "-n", "1"))


def test_what_comes_from_elsewhere_cannot_steer_a_terminal(
    spear: Any, node: Any, terminal: Any
) -> None:
    spear("invoke", "slow", "-i", "", "--async")
    node.log("t-1", "a\x1b]0;gotcha\x07b\x1b[31mred\x1b[0m", source="stderr")
    node.end("t-1")
    shown = terminal(lambda: spear("logs", "t-1"))
    assert "a\\x1b]0;gotcha\\x07b\x1b[31mred\x1b[0m" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (900_000, "10d")],
)
def test_ages(seconds: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    assert age(1_000_000.0 - seconds) == text


def test_durations_and_sizes() -> None:
    found = [duration(s) for s in (0.0004, 0.05, 3.25, 310, None)]
    assert found == ["0.4 ms", "50 ms", "3.2 s", "5m 10s", "-"]
    assert [duration(s) for s in (108_300, 302_400, 1e300)] == [
        *("30h 5m", "3.5 days", "1.16e+295 days")
    ]
    assert [size(n) for n in (0, 1023, 1536, 64 << 20, 3 << 30, None)] == [
        *("0 B", "1023 B", "1.5 KiB", "64 MiB", "3.0 GiB", "-")
    ]
