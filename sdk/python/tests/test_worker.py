"""A real worker process, driven over a real socket by a small node of our own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from spear_sdk._execution import Execution
from spear_sdk.testing import FakeContext

REQUEST, RESPONSE, CANCEL, PING, PONG, GOAWAY, NOTICE = 3, 4, 7, 8, 9, 10, 11
MORE, ERROR, STREAM, CRITICAL = 2, 4, 8, 128

BASICS = """
import contextvars, os, sys, threading, time
from dataclasses import dataclass
from spear_sdk import *

print("loading")
calls = 0

@dataclass
class Order:
    item: str
    count: int = 1

@function
def main(x: bytes, ctx: Context) -> bytes:
    global calls
    calls += 1
    return x

@function
def count(): return calls

@function
def order(order: Order): return Order(order.item, order.count + 1)

@function
def about(ctx):
    assert current_context() is ctx
    left = ctx.remaining
    names = "task_id execution_id attempt instance_id artifact trace cancelled".split()
    return {n: getattr(ctx, n) for n in names} | {
        "left": left, "env": ctx.env["MINE"], "secret": "SPEAR_CHANNEL_SECRET" in os.environ
    }

@function
def boom(x: str):
    def inner():
        return {}[x]
    inner()

@function
def refuse(): raise FunctionError("no such city", code="not_found", details={"city": "X"})

@function
def leave(): sys.exit(3)

@function
def says(ctx):
    ctx.log.trace("t"); ctx.log.debug("d %d", 1); ctx.log.info("100%"); ctx.log.warn("w")
    ctx.log.error("x" * 100_000)
    print("printed", end="")

@function
def spin(ctx):
    ctx.log.info("started")
    while not ctx.cancelled:
        pass
    ctx.raise_if_cancelled()

@function
def stubborn(ctx):
    ctx.log.info("started")
    time.sleep(60)

@function
def threaded():
    got = []
    t = threading.Thread(target=lambda: got.append(current_context().hostcall("a.b", "q")))
    t.start(); t.join()
    return got[0]

@function
def call(x: bytes, ctx): return ctx.hostcall("a.b", x)

@function
def call_and_spin(ctx):
    ctx.hostcall("a.b")
    spin(ctx)

@function
def call_twice(ctx):
    try:
        ctx.hostcall("no.way")
    except HostcallError as exc:
        return [str(exc), exc.name, exc.code, exc.retryable, ctx.hostcall("yes.way").decode()]

@function
def nan(): return float("nan")

@function
def big(n: int): return bytes(n)
"""

ASYNC = """
import asyncio
from spear_sdk import *

loops = set()
ticks = 0
background = None

@function
async def main(x: str, ctx: Context):
    loops.add(id(asyncio.get_running_loop()))
    await asyncio.sleep(0)
    assert current_context() is ctx
    return f"{x} {len(loops)}"

@function
async def call(ctx):
    answers = await asyncio.gather(*(ctx.ahostcall("a.b", f"{i}") for i in range(3)))
    return b",".join(answers)

@function
async def wait(ctx):
    try:
        ctx.log.info("started")
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.01)
        ctx.log.info("cleaned up")

@function
async def wait_call(ctx):
    ctx.log.info("started")
    await ctx.ahostcall("a.b")

@function
async def fail():
    await asyncio.sleep(0)
    raise ValueError("bad")

@function
async def leave(): raise SystemExit(2)

@function
def inner_loop(ctx): return asyncio.run(ctx.ahostcall("a.b", "x"))

async def tick():
    global ticks
    while True:
        ticks += 1
        print(".")
        await asyncio.sleep(0.001)

@function
async def start():
    global background
    background = asyncio.create_task(tick())

@function
def ticked(): return ticks
"""
TRIO_SOURCE = (
    ASYNC.replace("import asyncio", "import trio")
    .replace("id(asyncio.get_running_loop())", "id(trio.lowlevel.current_root_task())")
    .replace("asyncio.sleep(0.01)", "trio.lowlevel.cancel_shielded_checkpoint()")
    .replace("asyncio.sleep", "trio.sleep")
    .replace("@function\nasync", "@function(backend='trio')\nasync")
)
TRIO_SOURCE = TRIO_SOURCE[: TRIO_SOURCE.index("@function\ndef inner_loop")]
TRIO_SOURCE = TRIO_SOURCE.replace(
    'await asyncio.gather(*(ctx.ahostcall("a.b", f"{i}") for i in range(3)))',
    '[await ctx.ahostcall("a.b", f"{i}") for i in range(3)]',
)


@pytest.fixture
def node(start_node: Any) -> Any:
    return start_node(BASICS, MINE="mine")


FORKED = (
    "import os, sys, spear_sdk.worker as w\n"
    "pid = os.fork()\n"
    "if pid == 0: os._exit(w.run_worker(os.environ['SPEAR_CHANNEL'], os.environ))\n"
    "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
)
"""As the zygote does it: everything imported before the fork, one call after it."""


@pytest.mark.parametrize("address", ["unix", "tcp"])
def test_executes_one_after_the_other_and_shuts_down(start_node: Any, address: str) -> None:
    node = start_node(BASICS, address=address)
    for n in (0, 1, 100, 300_000):
        assert node.output(payload=bytes(n)) == bytes(n)
    assert node.output("count") == b"4"
    assert node.shut_down() == 0


def test_a_completed_answer_has_its_type_and_usage(node: Any) -> None:
    frame = node.execute("order", b'{"item": "tea"}')
    usage = frame.head.pop("usage")
    assert frame.head == {"status": "completed", "content_type": "application/json"}
    assert frame.payload == b'{"item":"tea","count":2}'
    assert 0 <= usage["cpu_seconds"] < 5
    # Linux lets a program that was started begin with the peak of whoever started it.
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 5_000_000 < usage["peak_memory_bytes"] < 500_000_000 + ours


def test_the_peak_of_memory_is_each_executions_own(start_node: Any) -> None:
    node = start_node(
        """
        from spear_sdk import function

        @function
        def take(text: str) -> str:
            return str(len(bytearray(int(text) << 20)))
        """,
        python=("-c", FORKED),
        forked=True,
    )
    peaks = [
        node.execute("take", mebibytes).head["usage"]["peak_memory_bytes"]
        for mebibytes in (b"1", b"100", b"1")
    ]
    assert peaks[1] > peaks[0] + (90 << 20)
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert peaks[2] < peaks[0] + (50 << 20)


def test_the_context_knows_its_call(node: Any) -> None:
    about = json.loads(node.output("about", deadline_s=30.0))
    assert 25 < about.pop("left") <= 30
    assert about == {
        "task_id": "t1",
        "execution_id": "e1",
        "attempt": 1,
        "instance_id": "i-1",
        "artifact": "a@1",
        "trace": "00-aa-bb-01",
        "cancelled": False,
        "env": "mine",
        "secret": False,
    }


def test_bad_input_is_refused_without_noise(node: Any) -> None:
    error = node.failure("order", b'{"count": "x"}')
    assert error == {
        "code": "invalid_argument",
        "message": "parameter 'order' takes Order: the input lacks the field 'item'",
        "kind": "InvalidInputError",
        "details": {},
    }
    assert node.logs == []


def test_a_group_of_exceptions_names_those_in_it(start_node: Any) -> None:
    error = start_node("""
        import asyncio

        async def bad():
            raise KeyError("who")

        async def main():
            async with asyncio.TaskGroup() as group:
                group.create_task(bad())
    """).failure()
    assert error["kind"] == "ExceptionGroup"
    assert error["message"] == (
        "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception); KeyError: 'who'"
    )


def test_an_exception_is_reported_and_its_traceback_logged(node: Any) -> None:
    error = node.failure("boom", b"key")
    where = error["details"].pop("where")
    assert error == {
        "code": "unknown",
        "message": "KeyError: 'key'",
        "kind": "KeyError",
        "details": {},
    }
    assert where.startswith("agent.py:")
    assert where.endswith(" in inner")
    ((execution, level, text),) = node.logs
    assert (execution, level) == ("e1", "error")
    lines = text.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith('  File "agent.py", line ')
    assert "    return {}[x]" in lines
    assert lines[-1] == "KeyError: 'key'"
    assert "spear_sdk" not in text
    assert node.output(payload=b"still works") == b"still works"


@pytest.mark.parametrize("concurrency", ["1", "2"])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_only_the_functions_own_frames_are_reported(
    start_node: Any, kind: str, concurrency: str
) -> None:
    node = start_node(f"{kind} main():\n    return {{}}['x']\n", SPEAR_CONCURRENCY=concurrency)
    assert node.failure()["details"]["where"] == "agent.py:2 in main"
    ((_, _, text),) = node.logs
    places = [line for line in text.splitlines() if line.startswith("  File ")]
    assert places == ['  File "agent.py", line 2, in main']


def test_an_error_that_is_passed_on_keeps_one_name_in_front(start_node: Any) -> None:
    error = start_node("""
        from spear_sdk import HostcallError

        def main():
            raise HostcallError("HostcallError: ValueError: no such city")
    """).failure()
    assert error["message"] == "HostcallError: ValueError: no such city"


def test_a_deliberate_failure_keeps_its_code(node: Any) -> None:
    error = node.failure("refuse")
    assert error == {
        "code": "not_found",
        "message": "no such city",
        "kind": "FunctionError",
        "details": {"city": "X"},
    }
    assert node.logs == []


@pytest.mark.parametrize("entry", ["leave", "nan"])
def test_the_worker_survives_its_functions(node: Any, entry: str) -> None:
    assert node.failure(entry)["kind"] in ("SystemExit", "OutputError")
    assert node.output(payload=b"x") == b"x"


def test_unknown_entries_are_named(node: Any) -> None:
    error = node.failure("nope")
    assert error["code"] == "not_found"
    assert "agent.py has no function 'nope'; it has about, " in error["message"]


def test_logs_go_over_the_channel_and_prints_do_not(node: Any) -> None:
    assert os.read(node.process.stdout.fileno(), 100) == b"loading\n"  # while it goes on running
    node.execute("says")
    assert [(level, message[:5]) for _, level, message in node.logs] == [
        ("trace", "t"),
        ("debug", "d 1"),
        ("info", "100%"),
        ("warn", "w"),
        ("error", "xxxxx"),
    ]
    assert node.logs[-1][2].endswith("… (40000 bytes cut)")
    assert os.read(node.process.stdout.fileno(), 100) == b"printed"  # flushed, without a newline


def test_standard_logging_goes_to_the_task_log(start_node: Any) -> None:
    node = start_node(
        """
        def main():
            import logging  # only now
            logging.getLogger("early").debug("no")
        def second():
            import logging
            logging.getLogger("lib").info("info %d", 1)
            try: 1 / 0
            except ZeroDivisionError: logging.exception("oops")
        """
    )
    node.execute("main")
    node.execute("second")
    (first, second) = node.logs
    assert first == ("e3", "info", "lib: info 1")
    assert second[1] == "error"
    assert second[2].startswith("root: oops\nTraceback")
    assert 'File "agent.py", line 8' in second[2]


def test_own_logging_set_up_is_left_alone(start_node: Any) -> None:
    node = start_node(
        """
        import logging, sys
        logging.basicConfig(stream=sys.stdout, level="DEBUG")
        def main(): logging.debug("mine")
        """
    )
    node.execute()
    assert node.logs == []
    assert os.read(node.process.stdout.fileno(), 100) == b"DEBUG:root:mine\n"


# While user code runs.


def test_answers_health_and_pings_while_busy_and_idle(node: Any) -> None:
    for entry in ("", "spin"):
        if entry:
            number = node.request(entry)
            node.read_until("started")
        node.send(REQUEST, 1001, {"method": "health", "args": {}})
        frame = node.receive()
        assert (frame.kind, frame.flags, frame.id, frame.head) == (RESPONSE, 0, 1001, {})
        node.send(PING, 0, payload=b"echo me")
        assert node.receive()[:] == (PONG, 0, 0, {}, b"echo me")
    node.send(CANCEL, number, {"reason": "enough"})
    assert node.answer(number).flags == ERROR


def test_a_sync_function_sees_its_cancellation(node: Any) -> None:
    number = node.request("spin")
    node.read_until("started")
    node.send(CANCEL, number, {"reason": "enough"})
    frame = node.answer(number)
    assert frame.flags == ERROR
    assert frame.head == {
        "name": "TaskCancelledError",
        "code": "cancelled",
        "message": "the task was cancelled",
        "retryable": False,
    }
    assert node.output(payload=b"next") == b"next"


def test_a_queued_execution_can_be_cancelled(node: Any) -> None:
    first, second, third = node.request("spin"), node.request("count"), node.request("count")
    node.read_until("started")
    node.send(CANCEL, second, {"reason": "enough"})
    node.send(CANCEL, first, {"reason": "enough"})
    node.send(CANCEL, 999, {"reason": "of nothing"})
    assert node.answer(first).head["code"] == "cancelled"
    assert node.answer(second).head["code"] == "cancelled"
    assert node.answer(third).payload == b"0"


def test_shutdown_lets_the_running_execution_finish(node: Any) -> None:
    number = node.request("spin")
    node.read_until("started")
    node.send(NOTICE, 0, {"method": "shutdown", "args": {"grace_s": 5.0}})
    node.send(CANCEL, number, {"reason": "enough"})
    assert node.answer(number).flags == ERROR
    assert node.process.wait(60) == 0


def test_shutdown_comes_after_what_was_accepted_before(node: Any) -> None:
    first, second = node.request("spin"), node.request("count")
    node.read_until("started")
    node.send(NOTICE, 0, {"method": "shutdown", "args": {"grace_s": 5.0}})
    node.send(CANCEL, first, {"reason": "enough"})
    assert node.answer(first).flags == ERROR
    assert node.answer(second).payload == b"0"
    assert node.process.wait(60) == 0


def test_goaway_ends_an_idle_worker(node: Any) -> None:
    node.output(payload=b"x")
    node.send(GOAWAY, 0, {})
    assert node.process.wait(60) == 0


@pytest.mark.parametrize("entry", ["", "stubborn", "spin", "call"])
def test_ends_at_once_when_the_node_dies(
    node: Any, entry: str, ends_soon: Callable[[int], bool]
) -> None:
    if entry:
        node.request(entry)
        assert node.receive().kind in (NOTICE, REQUEST)
    else:
        node.output()
    node.connection.close()
    assert ends_soon(node.process.pid)


def test_ends_at_once_when_the_node_dies_while_it_loads(
    start_node: Any, ends_soon: Callable[[int], bool]
) -> None:
    node = start_node("import time\ntime.sleep(60)")
    node.send(PING, 0, payload=b"there?")
    assert node.receive().kind == PONG
    node.connection.close()
    assert ends_soon(node.process.pid)


# Hostcalls.


@pytest.mark.parametrize("payload", [b"question", bytes(1_000_000)], ids=["short", "long"])
def test_a_hostcall_is_answered(node: Any, payload: bytes) -> None:
    number = node.request("call", payload)
    asked = node.receive()
    assert asked.kind == REQUEST
    assert asked.id % 2 == 0
    assert asked.head == {"method": "hostcall", "args": {"execution_id": "e1", "name": "a.b"}}
    got, frame = asked.payload, asked
    while frame.flags & MORE:
        frame = node.receive()
        got += frame.payload
    assert got == payload
    node.send(RESPONSE, asked.id, {}, b"answer")
    assert node.answer(number).payload == b"answer"


def test_a_hostcall_may_fail(node: Any) -> None:
    number = node.request("call_twice")
    asked = node.receive()
    error = {"name": "StoreFullError", "code": "resource_exhausted", "message": "full"}
    node.send(RESPONSE, asked.id, error | {"retryable": True}, flags=ERROR)
    asked = node.receive()
    node.send(RESPONSE, asked.id, {}, b"fine")
    answer = json.loads(node.answer(number).payload)
    assert answer == ["full", "StoreFullError", "resource_exhausted", True, "fine"]


def test_a_hostcall_from_another_thread(node: Any) -> None:
    number = node.request("threaded")
    asked = node.receive()
    node.send(RESPONSE, asked.id, {}, b"answer")
    assert node.answer(number).payload == b"answer"


def test_cancelling_ends_a_hostcall(node: Any) -> None:
    number = node.request("call", b"x")
    asked = node.receive()
    node.send(PING, 0, payload=b"p")  # seen while it waits
    assert node.receive().kind == PONG
    node.send(CANCEL, number, {"reason": "enough"})
    cancel = node.receive()
    assert (cancel.kind, cancel.id) == (CANCEL, asked.id)
    assert node.answer(number).head["code"] == "cancelled"
    node.send(RESPONSE, asked.id, {}, b"too late")
    assert node.output(payload=b"next") == b"next"


def test_a_cancellation_is_seen_after_a_hostcall(node: Any) -> None:
    number = node.request("call_and_spin")
    node.send(RESPONSE, node.receive().id, {}, b"answer")
    node.read_until("started")
    node.send(CANCEL, number, {"reason": "enough"})
    assert node.answer(number).head["code"] == "cancelled"


def test_cancelling_ends_a_hostcall_of_another_thread(node: Any) -> None:
    number = node.request("threaded")
    asked = node.receive()
    node.send(CANCEL, number, {"reason": "enough"})
    cancel = node.receive()
    assert (cancel.kind, cancel.id) == (CANCEL, asked.id)
    assert node.answer(number).head["status"] == "failed"  # the thread has raised, not the main


# Async functions.


@pytest.fixture(params=["asyncio", "trio"])
def async_node(request: pytest.FixtureRequest, start_node: Any) -> Any:
    if request.param == "trio":
        pytest.importorskip("trio")
    return start_node(ASYNC if request.param == "asyncio" else TRIO_SOURCE)


def test_async_functions_share_one_loop(async_node: Any) -> None:
    assert [async_node.output("main", b"x") for _ in range(3)] == [b"x 1"] * 3
    assert async_node.shut_down() == 0


def test_async_hostcalls(async_node: Any) -> None:
    number = async_node.request("call")
    for _ in range(3):
        asked = async_node.receive()
        async_node.send(RESPONSE, asked.id, {}, asked.payload + b"!")
    assert async_node.answer(number).payload == b"0!,1!,2!"


def test_cancelling_an_async_function_lets_it_clean_up(async_node: Any) -> None:
    number = async_node.request("wait")
    async_node.read_until("started")
    async_node.send(CANCEL, number, {"reason": "enough"})
    assert async_node.answer(number).head["code"] == "cancelled"
    assert async_node.logs == [("e1", "info", "cleaned up")]
    assert async_node.output("main", b"x") == b"x 1"


def test_cancelling_twice_does_not_disturb_the_cleaning_up(async_node: Any) -> None:
    number = async_node.request("wait")
    async_node.read_until("started")
    for _ in range(3):
        async_node.send(CANCEL, number, {"reason": "enough"})
        time.sleep(0.002)
    assert async_node.answer(number).head["code"] == "cancelled"
    assert async_node.logs == [("e1", "info", "cleaned up")]


@pytest.mark.parametrize("early", [True, False])
def test_a_cancellation_reaches_the_event_loop_once(early: bool) -> None:
    execution = Execution(1, {}, b"", FakeContext())
    told: list[str] = []
    if early:
        assert not execution.cancel()
    execution.on_cancel(lambda: told.append("cancel"))
    for _ in range(2):
        assert execution.cancel()
    assert told == ["cancel"]


def test_cancelling_ends_an_async_hostcall(async_node: Any) -> None:
    number = async_node.request("wait_call")
    async_node.read_until("started")
    asked = async_node.receive()
    async_node.send(CANCEL, number, {"reason": "enough"})
    cancel = async_node.receive()
    assert (cancel.kind, cancel.id) == (CANCEL, asked.id)
    assert async_node.answer(number).head["code"] == "cancelled"


def test_an_async_failure_shows_only_the_guests_frames(async_node: Any) -> None:
    assert async_node.failure("fail")["message"] == "ValueError: bad"
    lines = async_node.logs[0][2].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].endswith("in fail")
    assert sum(line.startswith("  File") for line in lines) == 1
    assert async_node.failure("leave")["kind"] == "SystemExit"
    assert async_node.output("main", b"x") == b"x 1"


def test_what_asyncio_functions_leave_running_goes_on_between_executions(start_node: Any) -> None:
    node = start_node(ASYNC)
    node.output("start")
    before = int(node.output("ticked"))
    said = b""
    while said.count(b".") < before + 20:  # while it is asked for nothing
        said += os.read(node.process.stdout.fileno(), 100)
    assert int(node.output("ticked")) >= before + 20
    assert node.shut_down() == 0


def test_a_loop_inside_a_sync_function(start_node: Any) -> None:
    node = start_node(ASYNC)
    number = node.request("inner_loop")
    asked = node.receive()
    node.send(RESPONSE, asked.id, {}, b"answer")
    assert node.answer(number).payload == b"answer"


def test_trio_that_is_not_installed_is_asked_for(start_node: Any) -> None:
    node = start_node("import sys\nsys.modules['trio'] = None\n" + TRIO_SOURCE.split("trio", 1)[1])
    error = node.failure("main", b"x")
    assert error["code"] == "failed_precondition"
    assert error["message"].endswith("trio is not installed here")


# What can go wrong around it.


@pytest.mark.parametrize(
    ("source", "kind", "line"),
    [
        (
            "import nowhere",
            "ModuleNotFoundError: No module named 'nowhere'; modules beside the file come here "
            "with a spear.toml, packages when they are among its requirements or are installed for "
            f"{sys.executable}",
            "import nowhere",
        ),
        ("x = (", "SyntaxError: '(' was never closed (agent.py, line 1)", "    x = ("),
        ("import sys; sys.exit('no')", "SystemExit: no", "import sys; sys.exit('no')"),
    ],
)
def test_a_file_that_cannot_be_loaded(start_node: Any, source: str, kind: str, line: str) -> None:
    node = start_node(source)
    for _ in range(2):
        error = node.failure()
        assert error["code"] == "failed_precondition"
        assert error["message"] == f"agent.py cannot be loaded: {kind}"
    assert [entry[0] for entry in node.logs] == ["e1", "e3"]
    assert 'File "agent.py", line 1' in node.logs[0][2]
    assert line.strip() in node.logs[0][2]
    assert "spear_sdk" not in node.logs[0][2]


def test_a_function_with_impossible_parameters(start_node: Any) -> None:
    error = start_node("def main(a, b): ...").failure()
    assert error["code"] == "failed_precondition"
    assert "main needs a parameter 'b'" in error["message"]


def test_the_default_entry_comes_from_the_environment(start_node: Any) -> None:
    assert start_node(BASICS, SPEAR_ENTRY="count").output() == b"0"


def test_an_output_larger_than_the_node_takes(start_node: Any) -> None:
    node = start_node(BASICS, welcome=False)
    node.send(2, 0, {"v": 1, "node": "n", "max_frame": 400_000})
    assert len(node.output("big", b"300000")) == 300_000
    error = node.failure("big", b"400000")
    assert error["code"] == "resource_exhausted"
    assert "the function returned 400000 bytes" in error["message"]


def test_what_it_does_not_serve_is_refused(node: Any) -> None:
    node.send(REQUEST, 1, {"method": "dance", "args": {}})
    frame = node.receive()
    assert (frame.flags, frame.head["code"]) == (ERROR, "unimplemented")
    node.send(REQUEST, 3, {"method": "execute", "args": {}}, flags=STREAM)
    assert "does not serve streams" in node.receive().head["message"]
    node.send(77, 0, b"")
    assert node.output(payload=b"x") == b"x"


@pytest.mark.parametrize("busy", [False, True])
def test_a_broken_protocol_ends_it_with_a_message(node: Any, busy: bool) -> None:
    if busy:
        node.request("stubborn")
        node.read_until("started")
    node.send(77, 0, b"", flags=CRITICAL)
    assert node.process.wait(60) == 1
    assert b"the node broke the protocol: a critical frame" in node.process.stderr.read()


def test_a_node_that_does_not_welcome_it(start_node: Any) -> None:
    node = start_node(BASICS, welcome=False)
    node.connection.close()
    assert node.process.wait(60) == 1
    assert b"the node hung up on this worker's HELLO" in node.process.stderr.read()


def test_limits_that_leave_no_room_for_a_worker(start_node: Any) -> None:
    limited = (
        "import re, resource, sys\n"
        "from spear_sdk.worker import main\n"
        "used = re.search(r'VmData:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "most = int(used) * 1024 + (4 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (most, most))\n"
        "sys.exit(main())\n"
    )
    node = start_node("def main(): ...", python=("-c", limited))
    assert node.process.wait(60) == 1
    said = node.process.stderr.read().decode()
    assert said.endswith("the limit of memory or processes is too small\n")
    assert len(said.splitlines()) == 1


def test_started_by_hand_it_says_who_starts_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spear_sdk.worker"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "SPEAR_CHANNEL, SPEAR_INSTANCE_ID" in done.stderr
    assert "spear run FILE" in done.stderr


def test_runs_in_a_forked_child(start_node: Any) -> None:
    node = start_node(BASICS, python=("-c", FORKED), forked=True)
    assert node.output(payload=b"x") == b"x"
    assert node.shut_down() == 0


def test_a_killed_worker_shows_as_the_end_of_the_channel(node: Any) -> None:
    node.request("stubborn")
    node.read_until("started")
    node.process.send_signal(signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionResetError)):
        node.receive()


@pytest.mark.alone
def test_an_idle_worker_costs_nothing(node: Any) -> None:
    node.output(payload=b"x")
    before = node.execute("count").head["usage"]
    spent = []
    for _ in range(5):
        time.sleep(0.3)
        after = node.execute("count").head["usage"]
        spent.append(after["cpu_seconds"])
    # the least: what a machine takes away from the process may count as its own
    assert min(spent) < 0.02
    assert after["peak_memory_bytes"] < before["peak_memory_bytes"] + 1_000_000
