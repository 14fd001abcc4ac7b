"""The client against a real node in a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import TaskState
from spear_core.client import connect
from spear_core.errors import (
    ArtifactNotFoundError,
    InvalidRequestError,
    NodeUnreachableError,
    TaskCancelledError,
    TaskFailedError,
    TaskTimeoutError,
)

FUNCTIONS = b"""
import time

from spear_sdk import Context, FunctionError, function


@function
def shout(text: str) -> str:
    return text.upper()


@function
def total(numbers: list[int]) -> dict[str, int]:
    return {"sum": sum(numbers)}


@function
def refuse(ctx: Context) -> None:
    ctx.log.info("about to refuse")
    raise FunctionError("no such city", code="not_found", details={"city": "Atlantis"})


@function
def nap(seconds: str, ctx: Context) -> str:
    ctx.log.info("napping")
    time.sleep(float(seconds))
    return "rested"
"""


async def _deploy(client: Any) -> None:
    await client.deploy(FUNCTIONS, name="f", filename="f.py")


async def test_a_call_gives_a_result_or_raises_the_tasks_own_error(node: Any) -> None:
    async with connect(node.url) as client:
        await _deploy(client)
        assert (await client.invoke("f:shout", "hello")).text == "HELLO"
        answer = await client.invoke("f:total", [1, 2, 3])
        assert answer.json() == {"sum": 6}
        assert answer.task.state is TaskState.COMPLETED
        with pytest.raises(TaskFailedError, match="no such city") as failed:
            await client.invoke("f:refuse")
        assert (failed.value.code, failed.value.kind) == ("not_found", "FunctionError")
        assert failed.value.details["city"] == "Atlantis"
        entries = [e.message async for e in client.task(failed.value.task_id).logs(follow=True)]
        assert entries == ["about to refuse"]
        with pytest.raises(TaskTimeoutError) as late:
            await client.invoke("f:nap", "600", timeout_s=0.3)
        assert late.value.task_id
        with pytest.raises(ArtifactNotFoundError):
            await client.invoke("nobody")
        with pytest.raises(InvalidRequestError, match="timeout_s"):
            await client.invoke("f:shout", "x", timeout_s=-1.0)


async def test_a_submitted_task_is_waited_for_watched_and_cancelled(node: Any) -> None:
    async with connect(node.url) as client:
        await _deploy(client)
        quick = await client.submit("f:shout", "a")
        assert (await quick.wait()).output == b"A"
        assert (await quick.status()).state is TaskState.COMPLETED
        slow = await client.submit("f:nap", "600")
        async for entry in slow.logs(follow=True):
            assert entry.message == "napping"
            break
        assert (await slow.cancel("enough")).state is TaskState.CANCELLED
        with pytest.raises(TaskCancelledError, match="enough"):
            await slow.wait()
        assert slow.task_id in {task.task_id for task in await client.tasks()}


async def test_cancelling_a_call_cancels_its_task(node: Any) -> None:
    async with connect(node.url) as client:
        await _deploy(client)
        before = {task.task_id for task in await client.tasks()}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.invoke, "f:nap", "600")
            made: set[str] = set()
            with trio.fail_after(60):
                while not made:  # no message tells of a task that another call made
                    await trio.sleep(0.01)
                    made = {task.task_id for task in await client.tasks()} - before
            nursery.cancel_scope.cancel()
        (task_id,) = made
        assert (await client.task(task_id)._ask(wait=True)).state is TaskState.CANCELLED


async def test_a_node_that_went_away_and_came_back(
    start_node: Callable[[], Any], tmp_path: Path
) -> None:
    first = start_node()
    async with connect(state_dir=first.state) as client:
        await _deploy(client)
        async with trio.open_nursery() as nursery:

            async def kill_when_busy() -> None:
                while not (await client.status()).running:  # noqa: ASYNC110 - in another process
                    await trio.sleep(0.02)
                first.process.send_signal(signal.SIGKILL)

            nursery.start_soon(kill_when_busy)
            with pytest.raises(NodeUnreachableError):
                await client.invoke("f:nap", "600")
        first.process.wait(60)
        with pytest.raises(NodeUnreachableError, match="no node is running"):
            await client.status()
        second = start_node()
        assert second.state == first.state
        assert (await client.status()).pid == second.process.pid
        assert (await client.invoke("f:shout", "back")).text == "BACK"


async def test_what_the_block_raises_comes_out_as_it_is(node: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with connect(node.url):
            raise ZeroDivisionError
    with pytest.raises(InvalidRequestError, match="unix://"):
        async with connect("carrier-pigeon://x"):
            raise AssertionError
