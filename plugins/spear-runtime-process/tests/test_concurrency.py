"""Agents that have several executions at the same time in one worker."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import trio

from spear_core.api import ExecutionResponse, ExecutionStatus
from spear_core.errors import InstanceLostError

MANY = """
    import asyncio, sys, threading, time
    from spear_sdk import Context, current_context, function

    both = threading.Barrier(2, timeout=60)
    met = asyncio.Event()
    there = 0

    @function
    def meet(name: str) -> str:
        both.wait()
        return name

    @function
    async def ameet(name: str) -> str:
        global there
        there += 1
        if there == 2:
            met.set()
        await met.wait()
        return name

    @function
    def say(name: str) -> str:
        both.wait()
        print("I am", name)
        both.wait()
        print(name, "complains", file=sys.stderr)
        sys.stdout.write("bye " + name)
        assert current_context().execution_id
        return name

    @function
    async def forever() -> None:
        print("begun")
        try:
            await asyncio.sleep(1000)
        finally:
            print("cleaned up")

    @function
    def polite(ctx: Context) -> None:
        print("begun")
        while not ctx.cancelled:
            time.sleep(0.01)
        ctx.raise_if_cancelled()

    @function
    def stubborn() -> None:
        print("begun")
        while True:
            time.sleep(1)

    @function
    def short(data: bytes) -> bytes:
        return data

    @function
    def shout(data: bytes, ctx: Context) -> bytes:
        both.wait()
        return ctx.hostcall("upper", data)

    @function
    def fail() -> None:
        raise ValueError("no good")
    """


@pytest.fixture
def many(place: Any) -> Any:
    return place.artifact("many.py", MANY, concurrency=8)


def of(make: Any, entry: str, payload: bytes = b"") -> Any:
    return make(payload, entry=entry, deadline_s=90)


@pytest.fixture
def make_request() -> Any:
    from itertools import count

    from spear_core.api import ExecutionRequest

    numbers = count(1)

    def make(payload: bytes = b"", **fields: Any) -> ExecutionRequest:
        number = next(numbers)
        return ExecutionRequest(
            execution_id=f"e{number}", task_id=f"t{number}", payload=payload, **fields
        )

    return make


async def side_by_side(instance: Any, *requests: Any) -> list[ExecutionResponse]:
    answers: dict[str, ExecutionResponse] = {}

    async def one(request: Any) -> None:
        answers[request.execution_id] = await instance.execute(request)

    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            for request in requests:
                nursery.start_soon(one, request)
    return [answers[request.execution_id] for request in requests]


async def until_logged(hostcalls: Any, execution_id: str, text: str) -> None:
    with trio.fail_after(90):
        while (execution_id, text) not in [(e[0], e[3]) for e in hostcalls.entries]:
            await trio.sleep(0.01)


@pytest.mark.parametrize("entry", ["meet", "ameet"])
async def test_executions_run_side_by_side(
    entry: str, place: Any, many: Any, make_request: Any
) -> None:
    async with place.open() as runtime:
        await runtime.prepare(many)
        async with runtime.open_instance(place.spec(many)) as instance:
            answers = await side_by_side(
                instance, *(of(make_request, entry, name) for name in (b"a", b"b"))
            )
            assert [bytes(answer.payload) for answer in answers] == [b"a", b"b"]
            assert [answer.usage.cpu_seconds for answer in answers] == [None, None]
            assert instance.fit()


async def test_what_each_prints_goes_to_its_own_task(
    place: Any, many: Any, make_request: Any, hostcalls: Any
) -> None:
    async with place.open() as runtime:
        await runtime.prepare(many)
        async with runtime.open_instance(place.spec(many)) as instance:
            await side_by_side(
                instance, *(of(make_request, "say", name) for name in (b"anna", b"bert"))
            )
    for execution, name in (("e1", "anna"), ("e2", "bert")):
        mine = [(source, text) for who, _, source, text in hostcalls.entries if who == execution]
        assert mine == [
            ("stdout", f"I am {name}"),
            ("stderr", f"{name} complains"),
            ("stdout", f"bye {name}"),
        ]


async def test_hostcalls_of_each(place: Any, many: Any, make_request: Any) -> None:
    async with place.open() as runtime:
        await runtime.prepare(many)
        async with runtime.open_instance(place.spec(many)) as instance:
            answers = await side_by_side(
                instance, *(of(make_request, "shout", name) for name in (b"a", b"b"))
            )
            assert [bytes(answer.payload) for answer in answers] == [b"A", b"B"]


@pytest.mark.parametrize("which", ["the first", "the last"])
@pytest.mark.parametrize("entry", ["forever", "polite"])
async def test_cancelling_one_stops_only_that_one(
    entry: str, which: str, place: Any, many: Any, make_request: Any, hostcalls: Any
) -> None:
    async with place.open(cancel_grace_ms=20_000) as runtime:
        await runtime.prepare(many)
        async with runtime.open_instance(place.spec(many)) as instance:
            requests = [of(make_request, entry) for _ in range(2)]
            goes = requests[0 if which == "the first" else -1]
            scope = trio.CancelScope()

            async def run(request: Any) -> None:
                with scope if request is goes else trio.CancelScope():
                    await instance.execute(request)

            async with trio.open_nursery() as nursery:
                for request in requests:
                    nursery.start_soon(run, request)
                    await until_logged(hostcalls, request.execution_id, "begun")
                pid = instance.statistics().pid
                scope.cancel()
                while not scope.cancelled_caught:
                    await trio.sleep(0.01)
                if entry == "forever":  # it has ended before the cancellation came out
                    said = {e[0] for e in hostcalls.entries if e[3] == "cleaned up"}
                    assert said == {goes.execution_id}
                assert instance.fit()
                answer = await instance.execute(of(make_request, "short", b"on"))
                assert answer.payload == b"on"
                assert instance.statistics().pid == pid
                nursery.cancel_scope.cancel()


async def test_one_that_does_not_obey_takes_the_worker_along(
    place: Any, many: Any, make_request: Any, hostcalls: Any
) -> None:
    lost: list[InstanceLostError] = []
    async with place.open(cancel_grace_ms=200) as runtime:
        await runtime.prepare(many)
        async with runtime.open_instance(place.spec(many)) as instance:
            other, stubborn = of(make_request, "forever"), of(make_request, "stubborn")

            async def loses() -> None:
                with pytest.raises(InstanceLostError) as caught:
                    await instance.execute(other)
                lost.append(caught.value)

            with trio.fail_after(90):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(loses)
                    await until_logged(hostcalls, other.execution_id, "begun")
                    async with trio.open_nursery() as cancelled:
                        cancelled.start_soon(instance.execute, stubborn)
                        await until_logged(hostcalls, stubborn.execution_id, "begun")
                        cancelled.cancel_scope.cancel()
            assert len(lost) == 1
            assert not instance.fit()


async def test_a_failure_is_only_its_own(place: Any, many: Any, make_request: Any) -> None:
    async with place.open() as runtime:
        await runtime.prepare(many)
        async with runtime.open_instance(place.spec(many)) as instance:
            answers = await side_by_side(
                instance, of(make_request, "fail"), of(make_request, "short", b"fine")
            )
            assert [answer.status for answer in answers] == [
                ExecutionStatus.FAILED,
                ExecutionStatus.COMPLETED,
            ]
            await instance.check_health()


async def test_all_are_lost_with_their_worker(
    place: Any, many: Any, make_request: Any, hostcalls: Any
) -> None:
    async with place.open() as runtime:
        await runtime.prepare(many)
        async with runtime.open_instance(place.spec(many)) as instance:
            requests = [of(make_request, "forever") for _ in range(4)]
            lost = 0

            async def loses(request: Any) -> None:
                nonlocal lost
                with pytest.raises(InstanceLostError):
                    await instance.execute(request)
                lost += 1

            with trio.fail_after(90):
                async with trio.open_nursery() as nursery:
                    for request in requests:
                        nursery.start_soon(loses, request)
                    for request in requests:
                        await until_logged(hostcalls, request.execution_id, "begun")
                    os.kill(instance.statistics().pid, signal.SIGKILL)
            assert lost == 4
