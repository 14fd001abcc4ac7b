"""``spear invoke`` and ``spear result``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import attrs
import pytest

from spear_core.api import ExecutionMode, Priority, TaskState
from spear_core.errors import ResourceExhaustedError


def test_the_output_is_exactly_the_bytes(spear: Any, node: Any, tmp_path: Path) -> None:
    data = bytes(range(256)) * 3
    (tmp_path / "input").write_bytes(data)
    told = spear("invoke", "echo", "--input-file", str(tmp_path / "input"))
    assert (told.code, told.out, told.err) == (0, data, "")


def test_the_request_carries_what_was_asked_for(spear: Any, node: Any) -> None:
    told = spear("invoke", "echo@3:greet", "-i", "hé", "--timeout", "2m")
    assert told.out == "hé".encode()
    (request,) = node.requests
    assert request.function == "echo@3:greet"
    assert request.timeout_s == 120
    assert request.mode is ExecutionMode.SYNC


def test_how_it_is_called_goes_with_it(spear: Any, node: Any) -> None:
    options = ["--priority", "high", "--idempotency-key", "k1", "--caller", "ada"]
    told = spear("invoke", "echo", "-i", "x", *options, "--context", "a=1", "--context", "b=x=y")
    assert told.code == 0
    (request,) = node.requests
    assert request.priority is Priority.HIGH
    assert (request.idempotency_key, request.caller) == ("k1", "ada")
    assert request.context == {"a": "1", "b": "x=y"}


@pytest.mark.parametrize(
    ("given", "words"),
    [(["--context", "novalue"], "write K=V"), (["--priority", "first"], "'first' is not one of")],
)
def test_a_malformed_option_is_a_usage_error(
    spear: Any, node: Any, given: list[str], words: str
) -> None:
    told = spear("invoke", "echo", "-i", "x", *given)
    assert told.code == 2
    assert words in told.err
    assert node.requests == []


@pytest.mark.parametrize(
    ("given", "content_type"),
    [
        (["-i", "text"], "text/plain; charset=utf-8"),
        (["--input-file", "q.json"], "application/json"),
        (["--input-file", "q.unheard-of"], "application/octet-stream"),
        (["--input-file", "q.json", "--content-type", "text/x"], "text/x"),
    ],
)
def test_the_function_hears_what_kind_of_input_it_gets(
    spear: Any,
    node: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    content_type: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("q.json", "q.unheard-of"):
        (tmp_path / name).write_text("{}")
    assert spear("invoke", "echo", *given).code == 0
    (request,) = node.requests
    assert request.content_type == content_type


def test_a_failure_says_why_and_where_to_look(spear: Any, node: Any) -> None:
    told = spear("invoke", "fail", "-i", "")
    assert (told.code, told.out) == (1, b"")
    assert told.err == ("error: fail@1 failed: it broke (exit code 3)\nits log: spear logs t-1\n")


def test_a_deadline_has_the_exit_code_of_timeout(spear: Any, node: Any) -> None:
    told = spear("invoke", "limit", "-i", "")
    assert told.code == 124
    assert "limit@1 ran out of time: its deadline passed" in told.err


def test_a_refusal_has_the_exit_code_of_its_kind(spear: Any, node: Any) -> None:
    told = spear("invoke", "nobody", "-i", "")
    assert (told.code, told.err) == (3, "error: no artifact 'nobody' is deployed here\n")
    node.refusal = ResourceExhaustedError("the queue is full")
    assert spear("invoke", "echo", "-i", "").code == 5


def test_async_prints_the_task_and_result_has_its_end(spear: Any, node: Any) -> None:
    told = spear("invoke", "slow", "--async", "-i", "x")
    assert (told.code, told.text) == (0, "t-1\n")
    early = spear("result", "t-1")
    assert (early.code, early.out) == (6, b"")
    assert "t-1 is running; --wait" in early.err
    node.on_slow = lambda: node.end("t-1", b"done")
    assert spear("result", "t-1", "--wait").out == b"done"


def test_json_shows_the_whole_task(spear: Any, node: Any) -> None:
    shown = json.loads(spear("invoke", "echo", "-i", "hi", "--json").out)
    assert shown["state"] == "completed"
    assert shown["result"]["output"] == "hi"
    assert shown["result"]["usage"]["isolation"] == "syscalls"
    told = spear("invoke", "fail", "-i", "", "--json")
    assert told.code == 1
    assert json.loads(told.out)["result"]["error"]["code"] == "invalid_argument"


def test_json_has_bytes_that_are_no_text_as_base64(spear: Any, node: Any, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"\xff\x00")
    told = spear("invoke", "echo", "--input-file", str(tmp_path / "input"), "--json")
    assert json.loads(told.out)["result"]["output"] == {"base64": "/wA="}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_cancels_the_task(spear: Any, node: Any, number: int, code: int) -> None:
    node.on_slow = lambda: os.kill(os.getpid(), number)
    told = spear("invoke", "slow", "-i", "")
    assert (told.code, told.out) == (code, b"")
    assert node.cancelled == [("t-1", "the caller went away")]
    assert told.err == "interrupted; the task was cancelled\n"


def test_an_interrupt_after_detach_leaves_the_task(spear: Any, node: Any) -> None:
    node.on_slow = lambda: os.kill(os.getpid(), signal.SIGINT)
    told = spear("invoke", "slow", "-i", "", "--detach")
    assert told.code == 130
    assert "spear result t-1 --wait" in told.err
    assert node.cancelled == []
    assert node.tasks["t-1"].state is TaskState.RUNNING


def test_an_interrupt_while_waiting_for_a_result_leaves_the_task(spear: Any, node: Any) -> None:
    spear("invoke", "slow", "--async", "-i", "")
    node.on_slow = lambda: os.kill(os.getpid(), signal.SIGINT)
    told = spear("result", "t-1", "--wait")
    assert (told.code, told.err) == (130, "")
    assert node.cancelled == []


def test_detach_waits_and_prints_the_output(spear: Any, node: Any) -> None:
    node.on_slow = lambda: node.end("t-1", b"late")
    told = spear("invoke", "slow", "-i", "", "--detach")
    assert (told.code, told.out, told.err) == (0, b"late", "")


def test_an_unknown_task(spear: Any, node: Any) -> None:
    told = spear("result", "t-9")
    assert (told.code, told.err) == (3, "error: no task 't-9' is known here\n")


def test_no_node_says_how_to_start_one(spear: Any, tmp_path: Path) -> None:
    told = spear("invoke", "echo", "-i", "", "--state-dir", str(tmp_path / "st"))
    assert told.code == 4
    assert told.err == (
        f"error: no node is running in {tmp_path / 'st'}; start one with `spear node`, "
        "or name another with --state-dir or --node\n"
    )


def test_an_address_nobody_speaks(spear: Any) -> None:
    told = spear("ps", "--node", "gopher://here")
    assert told.code == 2
    assert "'gopher://here' should begin with one of" in told.err
    assert "unix://" in told.err


def test_a_failure_after_retries_says_so(spear: Any, node: Any) -> None:
    spear("invoke", "fail", "-i", "x")
    node.tasks["t-1"] = attrs.evolve(node.tasks["t-1"], attempt=3)
    assert "it broke (exit code 3) (attempt 3)" in spear("result", "t-1").err
