"""Functions that call functions, of every kind, on a real node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from spear_core.api import TaskState
from spear_core.client import connect
from spear_core.errors import TaskFailedError

AGENT = b"""
import asyncio

from spear_sdk import Context, HostcallError, function


@function
async def fan_out(words: list[str], ctx: Context) -> dict[str, object]:
    answers = await asyncio.gather(*(ctx.ainvoke("agent:shout", word) for word in words))
    return {"joined": answers}


@function
def shout(word: str, ctx: Context) -> str:
    return word.upper()


@function
def ask_badly(ctx: Context) -> dict[str, object]:
    try:
        ctx.invoke("agent:refuse", {"city": "Atlantis"})
    except HostcallError as error:
        return {"code": error.code, "kind": error.kind, "text": str(error), **error.details}
    return {}


@function
def refuse(request: dict[str, str]) -> None:
    from spear_sdk import FunctionError
    raise FunctionError("no such city", code="not_found", details=request)


@function
def patient(ctx: Context) -> str:
    left = ctx.start("agent:nap", "600", detached=True)
    ctx.log.info("detached %s", left.task_id)
    return ctx.invoke("agent:nap", "600")


@function
def nap(seconds: str) -> str:
    import time
    time.sleep(float(seconds))
    return "rested"


@function
def given(ctx: Context) -> dict[str, str]:
    return dict(ctx.given)


@function
def hand_on(ctx: Context) -> dict[str, str]:
    return ctx.invoke("agent:given", context={"by": "the agent"})


@function
def forever(ctx: Context) -> str:
    return ctx.invoke("agent:forever")
"""

CALLER = b"""(module
  (import "spear" "call_start" (func $start (param i32 i32 i32 i32) (result i32)))
  (import "spear" "call_result" (func $result (param i32 i32 i32) (result i32)))
  (import "spear" "call_close" (func $close (param i32) (result i32)))
  (import "spear" "input_read" (func $input (param i32 i32) (result i32)))
  (import "spear" "output_write" (func $write (param i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 8) "agent:shout")
  (func (export "_start") (local $length i32) (local $fd i32)
    (i32.store (i32.const 1024) (i32.const 4096))
    (local.set $length (call $input (i32.const 2048) (i32.const 1024)))
    (local.set $fd
      (call $start (i32.const 8) (i32.const 11) (i32.const 2048) (local.get $length)))
    (i32.store (i32.const 1024) (i32.const 4096))
    (local.set $length (call $result (local.get $fd) (i32.const 8192) (i32.const 1024)))
    (drop (call $close (local.get $fd)))
    (drop (call $write (i32.const 8192) (local.get $length)))))
"""


async def deploy(client: Any) -> None:
    await client.deploy(AGENT, name="agent", filename="agent.py")


async def test_an_agent_fans_out_and_joins_on_a_node_with_one_slot(
    start_node: Callable[..., Any],
) -> None:
    node = start_node("[execution]\nmax_concurrent_tasks = 1\n")
    async with connect(node.url) as client:
        await deploy(client)
        with trio.fail_after(60):
            answer = await client.invoke("agent:fan_out", ["a", "b", "c"])
        assert answer.json() == {"joined": ["A", "B", "C"]}
        tasks = await client.tasks()
        assert [task.parent_task_id for task in tasks] == [answer.task_id] * 3 + [""]


async def test_a_childs_failure_reaches_the_parent_typed(node: Any) -> None:
    async with connect(node.url) as client:
        await deploy(client)
        assert (await client.invoke("agent:ask_badly")).json() == {
            "code": "not_found",
            "kind": "FunctionError",
            "text": "no such city",
            "city": "Atlantis",
        }


async def test_children_end_with_their_parent_unless_detached(node: Any) -> None:
    async with connect(node.url) as client:
        await deploy(client)
        parent = await client.submit("agent:patient")
        async for entry in parent.logs(follow=True):
            detached = client.task(entry.message.removeprefix("detached "))
            break

        async def child() -> str:
            mine = {t.task_id for t in await client.tasks() if t.parent_task_id == parent.task_id}
            return next(iter(mine - {detached.task_id}), "")

        while not (attached := await child()):  # noqa: ASYNC110 - in another process
            await trio.sleep(0.02)
        await parent.cancel("enough")
        ended = await client.call(lambda api: api.get_task(attached, wait=True))
        assert ended.state is TaskState.CANCELLED
        assert not (await detached.status()).state.is_final
        await detached.cancel()


async def test_a_function_that_calls_itself_for_ever(start_node: Callable[..., Any]) -> None:
    node = start_node("[execution]\nmax_call_depth = 4\n")
    async with connect(node.url) as client:
        await deploy(client)
        with trio.fail_after(60), pytest.raises(TaskFailedError, match="nested too deep"):
            await client.invoke("agent:forever")


async def test_what_the_caller_said_reaches_every_kind_of_guest(node: Any) -> None:
    said = {"for": "ada", "why": "\u00e9"}
    async with connect(node.url) as client:
        await deploy(client)
        assert (await client.invoke("agent:given", context=said)).json() == said
        assert (await client.invoke("agent:hand_on", context={})).json() == {"by": "the agent"}
        command = b'#!/bin/sh\nprintf %s "$SPEAR_CONTEXT"\n'
        await client.deploy(command, name="said", filename="said.sh")
        assert (await client.invoke("said", context=said)).json() == said
        assert (await client.invoke("said")).output == b""


async def test_a_wasm_guest_calls_a_python_function(node: Any) -> None:
    async with connect(node.url) as client:
        await deploy(client)
        await client.deploy(CALLER, name="caller", filename="caller.wat")
        assert (await client.invoke("caller", b"hello from wasm")).output == b"HELLO FROM WASM"
