"""One task handles call after call, and many calls end together: no call notices."""

from __future__ import annotations

from collections import Counter

import trio
import trio.testing

from spear_transport_grpc._bridge import Port, ServerCall, Unary, open_channel, open_server
from spear_transport_grpc._bridge._workers import Workers


async def test_every_caller_gets_its_own_answer(opened) -> None:
    got: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        got[number] = await pair.channel.call("/t/Echo", b"%d" % number)

    async with opened() as pair, trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(ask, number)
    assert got == {number: b"%d" % number for number in range(500)}


async def test_a_deadline_ends_with_its_call(opened) -> None:
    async with opened() as pair:
        seconds, answered = 0.1, b""
        while not answered:  # longer, should the machine stand still for so long
            seconds *= 2
            with trio.move_on_after(seconds):
                answered = await pair.channel.call("/t/Echo", b"in time")
        await trio.sleep(seconds + 0.05)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.channel.call, "/t/Sleep", b"")
            await pair.seen.wait("started", 1)
            assert pair.seen.remaining == float("inf")
            await trio.sleep(0.05)
            assert pair.seen.cancelled == 0
            nursery.cancel_scope.cancel()


async def test_calls_after_a_cancelled_one_are_not_cancelled(opened) -> None:
    async with opened() as pair:
        for number in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.channel.call, "/t/Sleep", b"")
                await pair.seen.wait("started", number + 1)
                nursery.cancel_scope.cancel()
            assert await pair.channel.call("/t/Echo", b"fine") == b"fine"


async def test_calls_that_end_together_are_answered_before_the_server_stops(tmp_path) -> None:
    """Also those whose end waits for others, when nothing else happens any more."""
    go, all_wait = trio.Event(), trio.Event()
    waiting = 0
    answers: list[bytes] = []

    async def wait(request: bytes, call: ServerCall) -> bytes:
        nonlocal waiting
        waiting += 1
        if waiting == 50:
            all_wait.set()
        await go.wait()
        return request

    async def ask(number: int) -> None:
        answers.append(await channel.call("/t/Wait", b"%d" % number))

    target = f"unix:{tmp_path}/s"
    async with open_channel(target) as channel, trio.open_nursery() as nursery:
        port = Port(address=target)
        async with open_server((port,), {"/t/Wait": Unary(wait)}, grace_s=30):
            for number in range(50):
                nursery.start_soon(ask, number)
            with trio.fail_after(60):
                await all_wait.wait()
            go.set()
    assert sorted(answers) == sorted(b"%d" % number for number in range(50))


async def test_a_worker_takes_one_job_after_the_other_and_ends_when_dismissed() -> None:
    tasks: Counter[trio.lowlevel.Task] = Counter()

    async def serve(job: int, scope: trio.CancelScope) -> None:
        tasks[trio.lowlevel.current_task()] += 1
        if job == 1:
            scope.cancel()
            await trio.sleep_forever()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            workers = Workers[int](nursery, serve)
            for job in (0, 0, 1, 2, 2, 2):
                workers.start(job)
                await trio.testing.wait_all_tasks_blocked()
            assert list(tasks.values()) == [3, 3]  # the second since the first was cancelled
            workers.dismiss()


async def test_idle_workers_end_with_their_nursery() -> None:
    async def serve(job: int, scope: trio.CancelScope) -> None:
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        workers = Workers[int](nursery, serve)
        workers.start(0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    workers.dismiss()  # nobody is left to be woken
