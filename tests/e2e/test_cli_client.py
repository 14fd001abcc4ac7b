"""Client commands against a real node."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest


@pytest.fixture
def busy(home: Any) -> Any:
    """A node with ``slow``, which says that it is up and then sleeps for a minute."""
    home.node()
    path = home.folder / "slow.sh"
    path.write_text("#!/bin/sh\necho up >&2\nsleep 600\necho done\n")
    assert home.spear("deploy", str(path)).out == "slow@1\n"
    return home


def only_task(home: Any) -> dict[str, Any]:
    (task,) = json.loads(home.spear("ps", "--json").out)
    assert isinstance(task, dict)
    return task


def wait_for_state(home: Any, state: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        tasks = json.loads(home.spear("ps", "--json").out)
        return next((task for task in tasks if task["state"] == state), None)

    found: dict[str, Any] = home.wait_until(look, f"a task is {state}")
    return found


def test_an_interrupted_invoke_cancels_the_task(busy: Any) -> None:
    process = busy.start("invoke", "slow")
    wait_for_state(busy, "running")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == b"interrupted; the task was cancelled\n"
    wait_for_state(busy, "cancelled")


def test_a_killed_invoke_cancels_the_task(busy: Any) -> None:
    process = busy.start("invoke", "slow")
    wait_for_state(busy, "running")
    process.kill()
    wait_for_state(busy, "cancelled")


def test_a_detached_invoke_leaves_the_task(busy: Any) -> None:
    process = busy.start("invoke", "slow", "--detach")
    task = wait_for_state(busy, "running")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert f"spear result {task['task_id']} --wait".encode() in process.stderr.read()
    assert only_task(busy)["state"] == "running"
    told = busy.spear("cancel", task["task_id"])
    assert told.out == f"{task['task_id']} cancelled\n"
    late = busy.spear("result", task["task_id"])
    assert (late.status, late.out) == (130, "")
    assert "slow@1 was cancelled" in late.err


def test_logs_are_followed_to_the_end_of_the_task(busy: Any) -> None:
    task_id = busy.spear("invoke", "slow", "--async").out.strip()
    process = busy.start("logs", task_id, "-f")
    assert process.stdout.readline() == b"up\n"
    assert process.poll() is None
    busy.spear("cancel", task_id)
    assert process.wait(60) == 0


def test_a_node_that_goes_away(busy: Any) -> None:
    process = busy.start("invoke", "slow")
    wait_for_state(busy, "running")
    busy.processes[0].kill()
    assert process.wait(60) == 4
    assert len(process.stderr.read().splitlines()) == 1


def test_a_deadline_at_the_node(busy: Any) -> None:
    told = busy.spear("invoke", "slow", "--timeout", "300ms")
    assert (told.status, told.out) == (124, "")


def test_config_reload_says_what_holds_now_and_what_waits(home: Any) -> None:
    file = home.folder / "node.toml"
    file.write_text("[execution]\nmax_concurrent_tasks = 4\n")
    home.node("--config", str(file))
    file.write_text("[execution]\nmax_concurrent_tasks = 2\nmax_input_bytes = 1000\n")
    told = home.spear("config", "reload")
    assert (told.status, told.out) == (0, "execution.max_concurrent_tasks: 4 → 2\n")
    assert (
        told.err == "warning: execution.max_input_bytes takes effect when the node is restarted\n"
    )

    again = json.loads(home.spear("config", "reload", "--json").out)
    assert again == {"path": str(file), "changed": [], "restart": ["execution.max_input_bytes"]}

    file.write_text("[execution]\nmax_concurrent_tasks = 0\nmax_queued = 5\n")
    told = home.spear("config", "reload")
    assert told.status != 0
    assert told.out == ""
    assert "execution.max_concurrent_tasks" in told.err
    assert "execution.max_queued" in told.err, "every mistake is told"
    file.write_text("[execution]\nmax_concurrent_tasks = 2\nmax_input_bytes = 1000\n")
    unchanged = json.loads(home.spear("config", "reload", "--json").out)
    assert unchanged["changed"] == [], "the file with mistakes changed nothing"
