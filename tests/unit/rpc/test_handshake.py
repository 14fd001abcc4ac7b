"""The first frame each way."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from spear_core.api import Channel, Message, MessageKind
from spear_core.builtins.memory_transport import local_pair
from spear_core.errors import ChannelAuthError, ProtocolError
from spear_core.rpc import hello, welcome
from spear_core.rpc.codec import encode_head


def accept(head: dict[str, Any]) -> dict[str, Any]:
    if head.get("secret") != b"s" * 32:
        raise ChannelAuthError("wrong secret")
    return {"node": "n1"}


async def shake(near: Channel, far: Channel, head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    got: dict[str, dict[str, Any]] = {}

    async def accepting() -> None:
        got["hello"] = await welcome(far, accept)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accepting)
        got["welcome"] = await hello(near, head)
    return got


async def test_both_sides_learn_of_each_other() -> None:
    near, far = local_pair()
    got = await shake(near, far, {"role": "instance", "secret": b"s" * 32})
    assert got["welcome"] == {"v": 1, "node": "n1"}
    assert got["hello"] == {"v": 1, "role": "instance", "secret": b"s" * 32}


async def test_a_wrong_secret_is_told_nothing() -> None:
    near, far = local_pair()
    await near.send(Message(MessageKind.HELLO, head=encode_head({"v": 1, "secret": b"?"})))
    with pytest.raises(ChannelAuthError, match="wrong secret"):
        await welcome(far, accept)
    with pytest.raises(trio.EndOfChannel):
        await near.receive()


async def test_the_refused_side_says_so() -> None:
    near, far = local_pair()

    async def refusing() -> None:
        with pytest.raises(ChannelAuthError, match="wrong secret"):
            await welcome(far, accept)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refusing)
        with pytest.raises(ChannelAuthError, match="refused the connection"):
            await hello(near, {"secret": b"?"})
    assert not near.is_connected


async def test_another_version_is_named_on_both_sides() -> None:
    near, far = local_pair()
    await near.send(Message(MessageKind.HELLO, head=encode_head({"v": 9})))
    with pytest.raises(ChannelAuthError, match="version 9; this side speaks 1"):
        await welcome(far, accept)
    answer = await near.receive()
    assert answer.kind == MessageKind.GOAWAY
    assert b"version 9; this side speaks 1" in answer.head


async def test_a_refusal_with_a_reason_is_passed_on() -> None:
    near, far = local_pair()
    await far.send(Message(MessageKind.GOAWAY, head=encode_head({"reason": "too old"})))
    with pytest.raises(ChannelAuthError, match="too old"):
        await hello(near, {})


@pytest.mark.parametrize(
    "first",
    [
        Message(MessageKind.REQUEST, 2, 0, encode_head({"method": "invoke"})),
        Message(MessageKind.HELLO, head=b"\xc1"),
        Message(MessageKind.HELLO, head=b""),
        Message(99),
    ],
)
async def test_anything_else_first_closes_the_channel(first: Message) -> None:
    near, far = local_pair()
    await near.send(first)
    with pytest.raises(ProtocolError):
        await welcome(far, accept)
    assert not far.is_connected


async def test_leaving_without_a_word() -> None:
    near, far = local_pair()
    await near.aclose()
    with pytest.raises(ChannelAuthError, match="without a word"):
        await welcome(far, accept)


async def test_anything_but_a_welcome_is_an_error() -> None:
    near, far = local_pair()
    await far.send(Message(MessageKind.PING, head=b"\x80"))
    with pytest.raises(ProtocolError, match="expected WELCOME"):
        await hello(near, {})
