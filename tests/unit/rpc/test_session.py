"""Requests, answers, notices, cancellation and the end of a session."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import Message, MessageKind
from spear_core.builtins.memory_transport import local_pair
from spear_core.errors import (
    ChannelBrokenError,
    ChannelClosedError,
    InvalidRequestError,
    NodeStoppingError,
    ResourceExhaustedError,
    SpearError,
)
from spear_core.rpc import Call, Reply, Session, SessionLimits, SocketChannel, open_session
from spear_core.rpc.codec import encode_head

OpenSides = Callable[..., AbstractAsyncContextManager[Any]]
OpenHostile = Callable[..., AbstractAsyncContextManager[Any]]
LARGE = bytes(range(256)) * 65536


async def echo(call: Call) -> Reply:
    return Reply(call.args, call.payload)


async def test_a_request_has_its_answer(open_sides: OpenSides) -> None:
    async with open_sides() as sides:
        reply = await sides.client.request("echo", {"a": [1, None, "x"]}, b"payload")
        assert (reply.head, reply.payload) == ({"a": [1, None, "x"]}, b"payload")


async def test_answers_go_to_whom_they_belong(open_sides: OpenSides) -> None:
    async def later(call: Call) -> Reply:
        await trio.sleep(call.args["n"] * 0.001)
        return Reply({"n": call.args["n"]})

    async def ask(session: Session, n: int) -> None:
        assert (await session.request("later", {"n": n})).head == {"n": n}

    async with open_sides(later) as sides, trio.open_nursery() as nursery:
        for n in reversed(range(30)):
            nursery.start_soon(ask, sides.client, n)


async def test_answers_that_are_ready_together_go_together(
    open_sides: OpenSides, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    send_many = SocketChannel.send_many

    async def counted(channel: SocketChannel, messages: Sequence[Message]) -> None:
        together.append(len(messages))
        await send_many(channel, messages)

    monkeypatch.setattr(SocketChannel, "send_many", counted)

    async def ask(session: Session, n: int) -> None:
        assert (await session.request("echo", {"n": n})).head == {"n": n}

    async with open_sides() as sides:
        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(ask, sides.client, n)
        await sides.server.wait_idle()
    assert sum(together) == 100
    assert max(together) > 1


async def test_a_peer_that_asks_much_at_a_time_lets_others_run(open_sides: OpenSides) -> None:
    """A bystander sees few requests begin between two of its own steps."""
    began = 0

    async def handle(call: Call) -> Reply:
        nonlocal began
        began += 1
        return Reply()

    async def ask(session: Session) -> None:
        await session.request("ask")

    async with open_sides(handle) as sides, trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask, sides.client)
        seen, most = 0, 0
        while began < 100:
            await trio.lowlevel.checkpoint()
            most, seen = max(most, began - seen), began
    # It may be the first to run in one pass of the scheduler and the last in the next.
    assert 1 < most <= 16


async def test_an_answer_does_not_wait_for_those_that_take_longer(open_sides: OpenSides) -> None:
    """Whichever of them trio schedules first."""
    quick_answered = trio.Event()

    async def handle(call: Call) -> Reply:
        if call.method == "slow":
            await quick_answered.wait()
        return Reply()

    async def quick(session: Session) -> None:
        await session.request("quick")
        quick_answered.set()

    for _ in range(10):
        quick_answered = trio.Event()
        async with open_sides(handle) as sides:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(quick, sides.client)
                    for _ in range(20):
                        nursery.start_soon(sides.client.request, "slow")
                await sides.server.wait_idle()


async def test_answers_that_cannot_go_do_not_keep_a_session_from_its_end(
    open_hostile: OpenHostile,
) -> None:
    """The peer asks, reads nothing, and goes."""

    async def large(call: Call) -> Reply:
        return Reply({}, bytes(4000))

    async with open_hostile(large) as hostile:
        head = encode_head({"method": "x"})
        for number in range(1000):
            await hostile.send(MessageKind.REQUEST, 2 * number + 2, head=head)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.01) as still_under_way:
            await hostile.session.wait_idle()
        assert still_under_way.cancelled_caught
        await hostile.channel.aclose()
        with trio.fail_after(60):
            await hostile.session.wait_idle()


async def test_both_sides_may_ask() -> None:
    near, far = local_pair()
    async with (
        open_session(near, initiator=True, handler=echo) as one,
        open_session(far, initiator=False, handler=echo) as other,
    ):
        for session in (one, other):
            assert (await session.request("x", {}, b"hi")).payload == b"hi"


@pytest.mark.parametrize("size", [0, 262_144, 262_145, 524_288, len(LARGE)])
async def test_payloads_of_any_size_both_ways(open_sides: OpenSides, size: int) -> None:
    payload = LARGE[:size]
    async with open_sides() as sides:
        for buffer in (payload, bytearray(payload), memoryview(payload)):
            reply = await sides.client.request("echo", {}, buffer)
            assert reply.payload == payload


async def test_a_large_payload_does_not_hold_up_the_line(open_sides: OpenSides) -> None:
    order: list[str] = []

    async def ask(session: Session, name: str, payload: bytes) -> None:
        await session.request(name, {}, payload)
        order.append(name)

    async with open_sides() as sides, trio.open_nursery() as nursery:
        nursery.start_soon(ask, sides.client, "large", LARGE)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(ask, sides.client, "small", b"")
    assert order == ["small", "large"]


async def test_errors_come_back_as_they_are(open_sides: OpenSides) -> None:
    async def refuse(call: Call) -> Reply:
        raise ResourceExhaustedError("full", retry_after=1.5)

    async with open_sides(refuse) as sides:
        with pytest.raises(ResourceExhaustedError, match="full") as caught:
            await sides.client.request("x")
        assert caught.value.retry_after == 1.5


async def test_a_bug_in_a_handler_is_one_requests_error(
    open_sides: OpenSides, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(call: Call) -> Reply:
        if call.method == "bug":
            raise ZeroDivisionError("oops")
        if call.method == "unspeakable":
            return Reply({"x": object()})
        return Reply({"x": "y" * 70_000} if call.method == "long" else {})

    async with open_sides(buggy) as sides:
        with pytest.raises(SpearError, match="ZeroDivisionError: oops"):
            await sides.client.request("bug")
        with pytest.raises(SpearError, match="TypeError"):
            await sides.client.request("unspeakable")
        with pytest.raises(InvalidRequestError, match="65535"):
            await sides.client.request("long")
        assert (await sides.client.request("fine")).head == {}
    assert "the handler of bug failed" in caplog.text


async def test_without_a_handler_requests_are_refused(open_sides: OpenSides) -> None:
    async with open_sides(None) as sides:
        with pytest.raises(SpearError) as caught:
            await sides.client.request("x")
        assert caught.value.code == "unimplemented"


async def test_what_does_not_fit_is_refused_here(open_sides: OpenSides) -> None:
    limits = SessionLimits(max_message=1 << 20)
    near, far = local_pair()
    async with (
        open_session(near, initiator=True, limits=limits) as client,
        open_session(far, initiator=False, handler=echo),
    ):
        with pytest.raises(InvalidRequestError, match="1048577"):
            await client.request("x", {}, bytes((1 << 20) + 1))
        with pytest.raises(InvalidRequestError, match="65535"):
            await client.request("x", {"a": "x" * 70_000})
        assert len((await client.request("x", {}, bytes(1 << 20))).payload) == 1 << 20


async def test_an_answer_that_does_not_fit_is_an_error(open_sides: OpenSides) -> None:
    async def verbose(call: Call) -> Reply:
        return Reply({}, bytes((1 << 20) + 1))

    async with open_sides(verbose, limits=SessionLimits(max_message=1 << 20)) as sides:
        with pytest.raises(ResourceExhaustedError, match="1048577"):
            await sides.client.request("x")


async def test_notices_arrive_in_order_and_whole(open_sides: OpenSides) -> None:
    got: list[Call] = []
    async with open_sides(on_notice=got.append) as sides:
        for n in range(5):
            await sides.client.notify("log", {"n": n}, LARGE[: n * 200_000])
        await sides.client.ping()
    assert [call.args["n"] for call in got] == list(range(5))
    assert all(call.payload == LARGE[: n * 200_000] for n, call in enumerate(got))


async def test_large_notices_do_not_mix(open_sides: OpenSides) -> None:
    got: list[Call] = []
    async with open_sides(on_notice=got.append) as sides:
        async with trio.open_nursery() as nursery:
            for n in range(4):
                nursery.start_soon(sides.client.notify, "log", {"n": n}, bytes([n]) * 700_000)
        with trio.move_on_after(0):
            await sides.client.notify("log", {"n": 9}, LARGE)
        await sides.client.notify("log", {"n": 5}, bytes(700_000))
        await sides.client.ping()
    assert sorted(call.args["n"] for call in got) == [0, 1, 2, 3, 5]
    assert all(set(call.payload) == {call.args["n"] % 5} for call in got)


async def test_a_notice_that_was_cut_does_not_spoil_the_next() -> None:
    got: list[Call] = []
    near, far = local_pair()
    async with (
        open_session(far, initiator=False, on_notice=got.append),
        open_session(near, initiator=True) as client,
    ):
        for n in range(20):
            with trio.move_on_after(n * 0.0001):
                await client.notify("cut", {}, LARGE)
            await client.notify("whole", {"n": n}, LARGE[:300_000])
        await client.ping()
    assert [call.args["n"] for call in got if call.method == "whole"] == list(range(20))


async def test_a_failing_observer_hurts_nobody(
    open_sides: OpenSides, caplog: pytest.LogCaptureFixture
) -> None:
    def observe(call: Call) -> None:
        raise KeyError("who knows")

    async with open_sides(on_notice=observe) as sides:
        await sides.client.notify("log")
        assert (await sides.client.request("echo", {}, b"x")).payload == b"x"
    assert "the notice log could not be handled" in caplog.text


class Waiting:
    """A handler that waits for ever and notes what becomes of it."""

    def __init__(self) -> None:
        self.started = 0
        self.changed = trio.lowlevel.ParkingLot()
        self.cancelled: list[int] = []

    async def __call__(self, call: Call) -> Reply:
        if call.method == "echo":
            return Reply(call.args, call.payload)
        self.started += 1
        self.changed.unpark_all()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.append(call.args["n"])

    async def wait_started(self, count: int) -> None:
        while self.started < count:
            await self.changed.park()


async def test_cancelling_reaches_the_handler_and_only_it(open_sides: OpenSides) -> None:
    handler = Waiting()
    async with open_sides(handler) as sides, trio.open_nursery() as nursery:
        nursery.start_soon(sides.client.request, "wait", {"n": 1})
        scope = trio.CancelScope()

        async def ask() -> None:
            with scope:
                await sides.client.request("wait", {"n": 2})

        nursery.start_soon(ask)
        await handler.wait_started(2)
        scope.cancel()
        await sides.client.ping()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert handler.cancelled == [2]
        nursery.cancel_scope.cancel()


async def test_a_servant_that_was_cancelled_is_no_trap_for_the_next(open_sides: OpenSides) -> None:
    handler = Waiting()
    async with open_sides(handler) as sides:
        for n in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sides.client.request, "wait", {"n": n})
                await handler.wait_started(n + 1)
                nursery.cancel_scope.cancel()
            assert (await sides.client.request("echo", {}, b"x")).payload == b"x"
        await sides.server.wait_idle()  # the last CANCEL may still be on its way
        assert sorted(handler.cancelled) == list(range(handler.started))


async def test_a_request_cancelled_in_mid_payload(open_sides: OpenSides) -> None:
    async with open_sides() as sides:
        for _ in range(5):
            with trio.move_on_after(0.0005):
                await sides.client.request("echo", {}, LARGE)
            assert (await sides.client.request("echo", {}, b"x")).payload == b"x"
        assert sides.server._assembler._total == 0


async def test_a_cancelled_request_before_it_began_sends_nothing(open_sides: OpenSides) -> None:
    handler = Waiting()
    async with open_sides(handler) as sides:
        with trio.CancelScope() as scope:
            scope.cancel()
            await sides.client.request("wait", {"n": 1})
        assert scope.cancelled_caught
        await sides.client.ping()
        assert handler.started == 0


async def test_the_peers_end_fails_what_waits_and_cancels_what_runs() -> None:
    handler = Waiting()
    near, far = map(SocketChannel, socket.socketpair())
    async with open_session(far, initiator=False, handler=handler) as server:
        async with near, trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(ChannelBrokenError, match="other side has closed"):
                    await server.request("x")

            nursery.start_soon(ask)
            await near.send(
                Message(
                    MessageKind.REQUEST, 2, 0, encode_head({"method": "wait", "args": {"n": 1}})
                )
            )
            await handler.wait_started(1)
            await near.aclose()
        assert await server.wait_closed() == "the other side has closed the connection"
        await trio.testing.wait_all_tasks_blocked()
        assert handler.cancelled == [1]
        for call in (server.request("x"), server.notify("x"), server.ping()):
            with pytest.raises(ChannelBrokenError, match="other side has closed"):
                await call


async def test_our_own_end_is_closed_not_broken(open_sides: OpenSides) -> None:
    handler = Waiting()
    async with open_sides(handler) as sides, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(ChannelClosedError):
                await inner.request("wait", {"n": 1})

        near, far = local_pair()
        async with (
            open_session(far, initiator=False, handler=handler),
            open_session(near, initiator=True) as inner,
        ):
            nursery.start_soon(ask)
            await handler.wait_started(1)
        with pytest.raises(ChannelClosedError):
            await inner.request("echo")
        assert handler.cancelled == [1]
        assert sides.client is not inner


async def test_a_session_works_on_while_its_surroundings_are_cancelled() -> None:
    near, far = map(SocketChannel, socket.socketpair())
    async with open_session(far, initiator=False, handler=echo):
        with trio.CancelScope() as scope:
            async with open_session(near, initiator=True) as client:
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True), trio.fail_after(60):
                        assert (await client.request("echo", {}, b"bye")).payload == b"bye"
        assert scope.cancelled_caught
        assert not near.is_connected


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    near, _far = local_pair()
    with pytest.raises(KeyError, match="mine"):
        async with open_session(near, initiator=True):
            raise KeyError("mine")
    assert not near.is_connected


async def test_what_the_block_raises_comes_out_when_handlers_are_cancelled_too() -> None:
    handler = Waiting()
    near, far = local_pair()
    async with open_session(near, initiator=True) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(ChannelBrokenError):
                await client.request("wait", {"n": 1})

        async def fail() -> None:
            async with open_session(far, initiator=False, handler=handler):
                await handler.wait_started(1)
                scope.cancel()
                raise KeyError("mine")

        nursery.start_soon(ask)
        with pytest.raises(KeyError, match="mine"), trio.CancelScope() as scope:
            await fail()
        assert handler.cancelled == [1]


async def test_ping_measures(open_sides: OpenSides) -> None:
    async with open_sides() as sides:
        for session in (sides.client, sides.server):
            before = trio.current_time()
            assert 0 < await session.ping() <= trio.current_time() - before


async def test_after_goaway_only_what_runs_goes_on(open_sides: OpenSides) -> None:
    release = trio.Event()

    async def slow(call: Call) -> Reply:
        await release.wait()
        return Reply({"done": True})

    answers: list[Reply] = []

    async def ask(session: Session) -> None:
        answers.append(await session.request("slow"))

    async with open_sides(slow) as sides, trio.open_nursery() as nursery:
        nursery.start_soon(ask, sides.client)
        await sides.client.ping()
        await sides.server.goaway("closing time")
        await sides.server.ping()
        with pytest.raises(ChannelBrokenError, match="closing time"):
            await sides.client.request("slow")
        idle = trio.Event()

        async def wait_idle() -> None:
            await sides.server.wait_idle()
            idle.set()

        nursery.start_soon(wait_idle)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not idle.is_set()
        release.set()
        await idle.wait()
    assert answers[0].head == {"done": True}


async def test_a_request_that_crosses_a_goaway_is_refused(open_sides: OpenSides) -> None:
    async with open_sides() as sides:
        sides.server._peers.going = True
        with pytest.raises(NodeStoppingError):
            await sides.client.request("echo")


async def test_too_many_requests_at_once_are_refused(open_sides: OpenSides) -> None:
    handler = Waiting()
    limits = SessionLimits(max_requests=3)
    async with open_sides(handler, limits=limits) as sides, trio.open_nursery() as nursery:
        for n in range(3):
            nursery.start_soon(sides.client.request, "wait", {"n": n})
        await handler.wait_started(3)
        with pytest.raises(ResourceExhaustedError, match="too many requests"):
            await sides.client.request("wait", {"n": 4})
        nursery.cancel_scope.cancel()


DYING = """
import os, socket, sys, trio
from spear_core.rpc import Reply, SocketChannel, open_session

async def answer(call):
    if call.method == "die":
        os._exit(1)
    return Reply({}, call.payload)

async def main():
    channel = SocketChannel(socket.socket(fileno=int(sys.argv[1])))
    async with open_session(channel, initiator=False, handler=answer) as session:
        await session.wait_closed()

trio.run(main)
"""


async def test_a_real_process_answers_and_dies() -> None:
    near, far = socket.socketpair()
    command = [sys.executable, "-c", DYING, str(far.fileno())]
    process = await trio.lowlevel.open_process(
        command, pass_fds=[far.fileno()], stderr=subprocess.PIPE, env=dict(os.environ)
    )
    far.close()
    try:
        async with open_session(SocketChannel(near), initiator=True) as session:
            assert (await session.request("echo", {}, LARGE)).payload == LARGE
            with pytest.raises(ChannelBrokenError):
                await session.request("die")
            assert await session.wait_closed()
    finally:
        process.kill()
        await process.wait()
        if process.stderr is not None:
            await process.stderr.aclose()
