"""A peer that breaks the rules ends its own session, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing

from spear_core.api import Channel, Message, MessageFlag, MessageKind
from spear_core.errors import ChannelBrokenError, error_from_code
from spear_core.rpc import Call, Reply, SessionLimits
from spear_core.rpc.codec import decode_head, encode_head, error_from_head

OpenHostile = Callable[..., AbstractAsyncContextManager[Any]]

WAIT = encode_head({"method": "wait", "args": {}})
ECHO = encode_head({"method": "echo", "args": {}})


async def wait_or_echo(call: Call) -> Reply:
    if call.method == "wait":
        await trio.sleep_forever()
    return Reply(call.args, call.payload)


async def read_to_the_end(channel: Channel) -> None:
    while True:
        await channel.receive()


FATAL = {
    "a head that is no msgpack": [Message(MessageKind.REQUEST, 2, 0, b"\xc1")],
    "a head that is no request": [Message(MessageKind.REQUEST, 2, 0, encode_head({"x": 1}))],
    "a head that is a list": [Message(MessageKind.NOTICE, 0, 0, encode_head([1, 2]))],
    "an id of ours": [Message(MessageKind.REQUEST, 3, 0, ECHO)],
    "the id of the connection": [Message(MessageKind.REQUEST, 0, 0, ECHO)],
    "an id under way": [Message(MessageKind.REQUEST, 2, 0, WAIT)] * 2,
    "an id that is being assembled": [Message(MessageKind.REQUEST, 2, MessageFlag.MORE, ECHO)] * 2,
    "an id that is being assembled, whole": [
        Message(MessageKind.REQUEST, 2, MessageFlag.MORE, WAIT),
        Message(MessageKind.REQUEST, 2, 0, WAIT),
    ],
    "an answer to what was never asked": [Message(MessageKind.RESPONSE, 1, 0, b"\x80")],
    "an answer to its own request": [Message(MessageKind.RESPONSE, 2, 0, b"\x80")],
    "an unknown critical kind": [Message(77, 0, MessageFlag.CRITICAL)],
    "a second HELLO": [Message(MessageKind.HELLO)],
    "a ping with a load": [Message(MessageKind.PING, payload=bytes(65))],
    "a goaway that is no map": [Message(MessageKind.GOAWAY, head=b"\x01")],
}


@pytest.mark.parametrize("rule", FATAL)
async def test_breaking_a_rule_ends_the_session(open_hostile: OpenHostile, rule: str) -> None:
    async with open_hostile(wait_or_echo) as peer:
        for message in FATAL[rule]:
            await peer.channel.send(message)
        with trio.fail_after(60):
            reason = await peer.session.wait_closed()
            assert "closed the connection" not in reason
            with pytest.raises(trio.EndOfChannel):
                await read_to_the_end(peer.channel)
        with pytest.raises(ChannelBrokenError):
            await peer.session.request("x")


IGNORED = {
    "an unknown kind": Message(77, 5, 0, b"anything", b"at all"),
    "a cancel of nothing": Message(MessageKind.CANCEL, 98),
    "credit for nothing": Message(MessageKind.CREDIT, 98, 0, encode_head({"bytes": 5})),
    "data for nothing": Message(MessageKind.DATA, 98, 0, b"", b"late"),
    "a pong nobody asked for": Message(MessageKind.PONG, payload=b"12345678"),
}


@pytest.mark.parametrize("what", IGNORED)
async def test_what_may_come_late_is_ignored(open_hostile: OpenHostile, what: str) -> None:
    async with open_hostile() as peer:
        await peer.channel.send(IGNORED[what])
        await peer.send(MessageKind.REQUEST, 2, head=ECHO, payload=b"still here")
        answer = await peer.channel.receive()
        assert (answer.kind, answer.id) == (MessageKind.RESPONSE, 2)
        assert answer.payload == b"still here"


async def test_an_answer_that_comes_after_the_cancel(open_hostile: OpenHostile) -> None:
    async with open_hostile() as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.session.request, "x")
            request = await peer.channel.receive()
            nursery.cancel_scope.cancel()
        cancel = await peer.channel.receive()
        assert (cancel.kind, cancel.id) == (MessageKind.CANCEL, request.id)
        for flags in (MessageFlag.MORE, 0):
            await peer.send(MessageKind.RESPONSE, request.id, flags=flags, head=b"\x80")
        await peer.send(MessageKind.DATA, request.id)
        await peer.send(MessageKind.PING, payload=b"12345678")
        assert (await peer.channel.receive()).kind == MessageKind.PONG


async def test_two_answers_to_one_request(open_hostile: OpenHostile) -> None:
    async with open_hostile() as peer, trio.open_nursery() as nursery:

        async def answer() -> None:
            request = await peer.channel.receive()
            for text in ("first", "second"):
                await peer.send(
                    MessageKind.RESPONSE, request.id, head=encode_head({"answer": text})
                )

        nursery.start_soon(answer)
        assert (await peer.session.request("x")).head == {"answer": "first"}


async def test_a_malformed_answer_fails_every_request(open_hostile: OpenHostile) -> None:
    async with open_hostile() as peer, trio.open_nursery() as nursery:

        async def answer() -> None:
            request = await peer.channel.receive()
            await peer.send(MessageKind.RESPONSE, request.id, head=b"\x81")

        nursery.start_soon(answer)
        with pytest.raises(ChannelBrokenError, match="malformed head"):
            await peer.session.request("x")


async def test_a_request_that_grows_too_large_is_refused_alone(open_hostile: OpenHostile) -> None:
    async with open_hostile(limits=SessionLimits(max_message=1 << 20)) as peer:
        await peer.send(MessageKind.REQUEST, 2, flags=MessageFlag.MORE, head=ECHO)
        for _ in range(40):
            await peer.send(MessageKind.DATA, 2, flags=MessageFlag.MORE, payload=bytes(100_000))
        answer = await peer.channel.receive()
        assert (answer.id, answer.flags) == (2, MessageFlag.ERROR)
        assert error_from_head(answer.head).code == "resource_exhausted"
        await peer.send(MessageKind.REQUEST, 4, head=ECHO, payload=b"fine")
        assert (await peer.channel.receive()).payload == b"fine"
        assert peer.session._assembler._total == 0


async def test_many_unfinished_payloads_have_a_limit_together(open_hostile: OpenHostile) -> None:
    limits = SessionLimits(max_message=1 << 20, max_assembling=2 << 20)
    async with open_hostile(limits=limits) as peer:
        refused = 0
        for id_ in range(2, 42, 2):
            await peer.send(
                MessageKind.REQUEST, id_, flags=MessageFlag.MORE, head=ECHO, payload=bytes(200_000)
            )
        await peer.send(MessageKind.PING, payload=b"12345678")
        while (message := await peer.channel.receive()).kind != MessageKind.PONG:
            refused += error_from_head(message.head).code == "resource_exhausted"
        assert refused == 10


async def test_a_flood_of_empty_pieces_ends(open_hostile: OpenHostile) -> None:
    async with open_hostile(limits=SessionLimits(max_assembling=100_000)) as peer:
        await peer.send(MessageKind.REQUEST, 2, flags=MessageFlag.MORE, head=ECHO)
        for _ in range(2000):
            await peer.send(MessageKind.DATA, 2, flags=MessageFlag.MORE)
        answer = await peer.channel.receive()
        assert error_from_head(answer.head).code == "resource_exhausted"


async def test_a_cancelled_upload_is_answered(open_hostile: OpenHostile) -> None:
    async with open_hostile() as peer:
        await peer.send(MessageKind.REQUEST, 2, flags=MessageFlag.MORE, head=ECHO)
        await peer.send(MessageKind.CANCEL, 2)
        answer = await peer.channel.receive()
        assert error_from_head(answer.head).code == "cancelled"


async def test_a_cancel_is_answered(open_hostile: OpenHostile) -> None:
    async with open_hostile(wait_or_echo) as peer:
        await peer.send(MessageKind.REQUEST, 2, head=WAIT)
        await peer.send(MessageKind.CANCEL, 2)
        answer = await peer.channel.receive()
        assert (answer.kind, answer.id, answer.flags) == (
            MessageKind.RESPONSE,
            2,
            MessageFlag.ERROR,
        )
        assert decode_head(answer.head, dict)["name"] == "TaskCancelledError"
        assert error_from_code("TaskCancelledError", "", code="", retryable=False)


async def read_answer(channel: Channel) -> tuple[Message, bytes]:
    """One answer with all of its pieces, and nothing after it."""
    first = message = await channel.receive()
    parts = [bytes(first.payload)]
    while message.flags & MessageFlag.MORE:
        message = await channel.receive()
        assert (message.kind, message.id) == (MessageKind.DATA, first.id)
        parts.append(bytes(message.payload))
    await channel.send(Message(MessageKind.PING, payload=b"over"))
    assert (await channel.receive()).kind == MessageKind.PONG
    return first, b"".join(parts)


async def test_a_cancel_that_comes_while_the_answer_is_sent(open_hostile: OpenHostile) -> None:
    async def big_answer(call: Call) -> Reply:
        return Reply({}, SHARED)

    async with open_hostile(big_answer) as peer:
        await peer.send(MessageKind.REQUEST, 2, head=ECHO)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await peer.send(MessageKind.CANCEL, 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        first, payload = await read_answer(peer.channel)
        assert first.kind == MessageKind.RESPONSE
        assert payload == SHARED


async def test_an_answer_in_spite_of_a_cancel_is_sent_once(open_hostile: OpenHostile) -> None:
    async def stubborn(call: Call) -> Reply:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.02)
        return Reply({}, SHARED)

    async with open_hostile(stubborn) as peer:
        await peer.send(MessageKind.REQUEST, 2, head=ECHO)
        await peer.send(MessageKind.CANCEL, 2)
        await trio.sleep(0.05)
        first, payload = await read_answer(peer.channel)
        assert first.flags == MessageFlag.MORE
        assert payload == SHARED


async def test_who_asks_and_never_reads_is_cut_off(open_hostile: OpenHostile) -> None:
    sent = 0

    async def ask_on(peer: Any) -> None:
        nonlocal sent
        while True:
            await peer.send(MessageKind.PING, payload=bytes(64))
            sent += 1

    async with open_hostile() as peer:
        with pytest.raises(ChannelBrokenError), trio.fail_after(60):
            await ask_on(peer)
        assert "does not read" in await peer.session.wait_closed()
    assert sent < 20_000


async def test_a_reader_that_is_slow_holds_up_the_answers_not_the_memory(
    open_hostile: OpenHostile,
) -> None:
    answered = 0

    async def big_answer(call: Call) -> Reply:
        nonlocal answered
        answered += 1
        return Reply({}, memoryview(SHARED))

    limits = SessionLimits(max_requests=50)
    async with open_hostile(big_answer, limits=limits) as peer:
        for number in range(1, 500):
            await peer.send(MessageKind.REQUEST, 2 * number, head=ECHO)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert answered <= 50


SHARED = bytes(1 << 20)
