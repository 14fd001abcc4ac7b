"""``kill -9`` of a worker in the middle of an execution."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest


@pytest.fixture
def node(home: Any) -> Any:
    node = home.node()
    home.deploy_functions()
    return node


def test_the_caller_is_told_that_the_worker_was_killed(home: Any, node: Any) -> None:
    waiting = home.start("invoke", "bad:nap", "--input", "600")
    worker = node.running_instance()
    os.kill(worker["pid"], signal.SIGKILL)
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert out == b""
    assert b"SIGKILL" in err
    assert b"Traceback" not in err


def test_the_task_is_on_record_as_failed(home: Any, node: Any) -> None:
    task_id = home.spear("invoke", "bad:nap", "--async", "--input", "600").out.strip()
    os.kill(node.running_instance()["pid"], signal.SIGKILL)
    told = home.spear("result", task_id, "--wait", "--json")
    assert told.status == 1
    assert '"failed"' in told.out
    assert '"unavailable"' in told.out
    assert "SIGKILL" in home.spear("result", task_id).err


def test_the_next_call_gets_a_new_worker_and_nothing_of_the_old_is_left(
    home: Any, node: Any
) -> None:
    home.start("invoke", "bad:nap", "--input", "600")
    worker = node.running_instance()
    below = node.below()
    os.kill(worker["pid"], signal.SIGKILL)
    told = home.spear("invoke", "bad:nap", "--input", "0")
    assert (told.status, told.out) == (0, "slept 0")
    listed = node.listed("instances")
    assert worker["pid"] not in [instance["pid"] for instance in listed]
    assert worker["pid"] in [process.pid for process in below]
    dead = [process for process in below if process.pid == worker["pid"]]
    home.wait_until(lambda: home.gone(dead), "the dead worker is reaped")


def test_a_killed_command_says_which_signal(home: Any, node: Any) -> None:
    script = home.folder / "long.sh"
    script.write_text("#!/bin/sh\necho begun >&2\nexec sleep 600\n")
    script.chmod(0o755)
    assert home.spear("deploy", str(script), "--name", "long").status == 0
    waiting = home.start("invoke", "long")
    os.kill(node.running_instance("long@1")["pid"], signal.SIGKILL)
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert b"SIGKILL" in err
