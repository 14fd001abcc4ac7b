"""Tasks that start tasks, in a real node with a steered runtime."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import (
    ArtifactUpload,
    ErrorInfo,
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
    SpearletConfig,
    TaskState,
)
from spear_core.builtins.functions import FunctionsConfig
from spear_core.errors import SpearError
from spear_core.plugins import BUILTINS, load_plugins

HOSTCALLS = load_plugins([BUILTINS]).hostcalls


def packed(head: Any, value: bytes = b"") -> bytes:
    data = json.dumps(head).encode()
    return struct.pack("<I", len(data)) + data + value


def unpacked(answer: bytes) -> tuple[Any, bytes]:
    (length,) = struct.unpack_from("<I", answer)
    return json.loads(answer[4 : 4 + length]), answer[4 + length :]


class Script:
    """What a test's functions ``fn:NAME`` do; each gets the request and a way to call others."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.functions: dict[str, Callable[..., Any]] = {}
        self.seen: dict[str, ExecutionRequest] = {}

    async def __call__(self, request: ExecutionRequest) -> ExecutionResponse:
        name = request.entry
        self.seen[name] = request

        async def call(verb: str, head: Any, value: bytes = b"") -> tuple[Any, bytes]:
            hostcalls = self._runtime.context.hostcalls
            answer = await hostcalls.call(
                request.execution_id, f"functions.{verb}", packed(head, value)
            )
            return unpacked(answer)

        try:
            output = await self.functions[name](request, call)
        except SpearError as error:
            info = ErrorInfo(code=error.code, message=error.message, kind=type(error).__name__)
            return ExecutionResponse.failed(info)
        return ExecutionResponse.completed(output)


@pytest.fixture
def script(runtime: Any) -> Script:
    runtime.behaviour = script = Script(runtime)
    return script


@pytest.fixture
def open_fn_node(open_steered_node: Any) -> Callable[..., Any]:
    """Opens a node with the hostcalls ``functions.*`` and the artifact ``fn``."""
    owner = HOSTCALLS["functions.invoke"].plugin_name

    @asynccontextmanager
    async def open_it(**execution: Any) -> AsyncIterator[Any]:
        config = SpearletConfig(execution=ExecutionConfig(**execution))
        configs = {owner: {FunctionsConfig: FunctionsConfig()}}
        async with open_steered_node(config, hostcalls=HOSTCALLS, configs=configs) as node:
            upload = ArtifactUpload(name="fn", filename="fn.st", content=b"x", reuse=False)
            await node.api.deploy(upload)
            yield node

    return open_it


async def test_a_child_has_its_parents_deadline_trace_and_caller(
    open_fn_node: Any, script: Script
) -> None:
    async def parent(request: Any, call: Any) -> bytes:
        head, output = await call("invoke", {"function": "fn:child", "timeout_s": 500}, b"in")
        assert head["task_id"]
        return bytes(output)

    async def child(request: Any, call: Any) -> bytes:
        await trio.lowlevel.checkpoint()
        return bytes(request.payload) + b" out"

    script.functions = {"parent": parent, "child": child}
    async with open_fn_node() as node:
        done = await node.api.invoke(
            InvokeRequest(function="fn:parent", timeout_s=50, trace="00-ab-cd-01", caller="ada")
        )
        assert done.task.result.output == b"in out"
        newest, oldest = await node.api.list_tasks()
        assert newest.parent_task_id == oldest.task_id == done.task.task_id
        assert newest.caller == "ada"
    assert script.seen["child"].trace == "00-ab-cd-01"
    left = script.seen["child"].deadline_s
    assert left is not None
    assert left <= 50


async def test_a_parent_that_waits_holds_no_slot(open_fn_node: Any, script: Script) -> None:
    running = []

    async def parent(request: Any, call: Any) -> bytes:
        async def one() -> None:
            await call("invoke", {"function": "fn:child"})

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
        running.append((await node.api.status()).running)
        return b"joined"

    async def child(request: Any, call: Any) -> bytes:
        running.append((await node.api.status()).running)
        return b""

    script.functions = {"parent": parent, "child": child}
    async with open_fn_node(max_concurrent_tasks=1) as node:
        with trio.fail_after(60):
            done = await node.api.invoke(InvokeRequest(function="fn:parent"))
        assert done.task.result.output == b"joined"
        assert running == [1, 1, 1, 1]
        assert (await node.api.status()).running == 0


async def test_the_childs_error_reaches_the_parent_with_its_code(
    open_fn_node: Any, script: Script
) -> None:
    async def parent(request: Any, call: Any) -> bytes:
        await call("invoke", {"function": "fn:child"})
        raise AssertionError

    async def child(request: Any, call: Any) -> bytes:
        await trio.lowlevel.checkpoint()
        raise SpearError("no such city", code="not_found")

    script.functions = {"parent": parent, "child": child}
    async with open_fn_node() as node:
        error = (await node.api.invoke(InvokeRequest(function="fn:parent"))).task.result.error
    assert (error.code, error.message) == ("not_found", "no such city")
    assert error.kind == "TaskFailedError"


@pytest.mark.parametrize(("detached", "end"), [(False, "cancelled"), (True, "completed")])
@pytest.mark.parametrize("verb", ["invoke", "start"])
async def test_children_end_with_their_parent_unless_detached(
    open_fn_node: Any, script: Script, *, detached: bool, end: str, verb: str
) -> None:
    go_on = trio.Event()

    async def parent(request: Any, call: Any) -> bytes:
        await call(verb, {"function": "fn:child", "detached": detached})
        await trio.Event().wait()
        return b""

    async def child(request: Any, call: Any) -> bytes:
        await go_on.wait()
        return b""

    script.functions = {"parent": parent, "child": child}
    async with open_fn_node() as node:
        accepted = await node.api.invoke(
            InvokeRequest(function="fn:parent", mode=ExecutionMode.ASYNC)
        )
        await trio.testing.wait_all_tasks_blocked()
        await node.api.cancel_task(accepted.task.task_id)
        go_on.set()
        newest = (await node.api.list_tasks(limit=1))[0]
        assert newest.function == "fn@1:child"
        ended = await node.api.get_task(newest.task_id, wait=True)
        assert ended.state is TaskState(end)
        assert (await node.api.status()).running == 0


async def test_who_cancels_is_answered_when_the_children_have_ended_too(
    open_fn_node: Any, script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async def parent(request: Any, call: Any) -> bytes:
        await call("start", {"function": "fn:child"})
        await trio.sleep_forever()
        return b""

    async def child(request: Any, call: Any) -> bytes:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
        return b""

    script.functions = {"parent": parent, "child": child}
    async with open_fn_node() as node:
        accepted = await node.api.invoke(
            InvokeRequest(function="fn:parent", mode=ExecutionMode.ASYNC)
        )
        await trio.sleep(1)
        began = trio.current_time()
        await node.api.cancel_task(accepted.task.task_id)
        assert trio.current_time() - began >= 2
        newest = (await node.api.list_tasks(limit=1))[0]
        assert (newest.function, newest.state) == ("fn@1:child", TaskState.CANCELLED)
        assert (await node.api.status()).running == 0


@pytest.mark.parametrize("detached", [False, True])
async def test_a_function_that_calls_itself_for_ever_is_stopped(
    open_fn_node: Any, script: Script, *, detached: bool
) -> None:
    async def loop(request: Any, call: Any) -> bytes:
        await call("invoke", {"function": "fn:loop", "detached": detached})
        return b""

    script.functions = {"loop": loop}
    async with open_fn_node(max_call_depth=4) as node:
        error = (await node.api.invoke(InvokeRequest(function="fn:loop"))).task.result.error
        assert error.code == "resource_exhausted"
        assert "nested too deep" in error.message
        assert "execution.max_call_depth" in error.message
        assert len(await node.api.list_tasks()) == 4


async def test_start_then_wait_and_cancel(open_fn_node: Any, script: Script) -> None:
    async def parent(request: Any, call: Any) -> bytes:
        quick, _ = await call("start", {"function": "fn:quick", "priority": "high"})
        slow, _ = await call("start", {"function": "fn:slow"})
        _, output = await call("wait", quick)
        ended, _ = await call("cancel", slow | {"reason": "enough"})
        assert ended["state"] == "cancelled"
        with pytest.raises(SpearError, match="enough") as cancelled:
            await call("wait", slow)
        assert cancelled.value.code == "cancelled"
        return bytes(output)

    async def quick(request: Any, call: Any) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"quick"

    async def slow(request: Any, call: Any) -> bytes:
        await trio.Event().wait()
        return b""

    script.functions = {"parent": parent, "quick": quick, "slow": slow}
    async with open_fn_node() as node:
        done = await node.api.invoke(InvokeRequest(function="fn:parent"))
        assert done.task.result.output == b"quick"
        priorities = {task.function: task.priority.name for task in await node.api.list_tasks()}
        assert priorities["fn@1:quick"] == "HIGH"


async def test_another_ones_task_is_none_of_its_business(open_fn_node: Any, script: Script) -> None:
    async def parent(request: Any, call: Any) -> bytes:
        for verb in ("wait", "cancel"):
            with pytest.raises(SpearError, match="is no task that") as refused:
                await call(verb, {"task_id": request.task_id})
            assert refused.value.code == "not_found"
        return b""

    script.functions = {"parent": parent}
    async with open_fn_node() as node:
        assert (await node.api.invoke(InvokeRequest(function="fn:parent"))).success


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "ends within its head"),
        (b"\xff\0\0\0{}", "ends within its head"),
        (packed([]), "is not understood"),
        (packed({"function": "f", "colour": "red"}), "colour"),
        (packed({"function": "f", "priority": "first"}), "priority"),
    ],
)
async def test_a_malformed_call_is_refused(
    open_fn_node: Any, script: Script, runtime: Any, payload: bytes, words: str
) -> None:
    async def parent(request: Any, call: Any) -> bytes:
        with pytest.raises(SpearError, match=words) as refused:
            await runtime.context.hostcalls.call(request.execution_id, "functions.invoke", payload)
        assert refused.value.code == "invalid_argument"
        return b""

    script.functions = {"parent": parent}
    async with open_fn_node() as node:
        assert (await node.api.invoke(InvokeRequest(function="fn:parent"))).success
