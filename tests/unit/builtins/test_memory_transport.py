"""What the memory transport does beyond the contract of transports."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from spear_core.api import Message, MessageKind
from spear_core.builtins.memory_transport import MemoryTransport, local_pair
from spear_core.errors import ChannelBrokenError, ChannelClosedError
from spear_core.rpc import Call, Reply, open_session


async def test_a_message_is_not_encoded_on_its_way() -> None:
    near, far = local_pair()
    sent = Message(MessageKind.REQUEST, 1, 0, b"head", b"payload")
    await near.send(sent)
    assert await far.receive() is sent


async def test_a_buffer_the_sender_may_reuse_is_copied() -> None:
    near, far = local_pair()
    buffer = bytearray(b"before")
    await near.send(Message(MessageKind.DATA, payload=buffer))
    buffer[:] = b"after!"
    assert (await far.receive()).payload == b"before"


async def test_a_served_request_makes_no_task_switch() -> None:
    near, far = local_pair()

    async def answer(request: Message) -> Message:
        return Message(MessageKind.RESPONSE, request.id, 0, b"", request.payload)

    far.serve(answer)
    with trio.testing.assert_no_checkpoints():
        reply = await near.request_response(Message(MessageKind.REQUEST, 1, 0, b"h", b"abc"))
    assert reply.payload == b"abc"
    assert near.statistics().bytes_sent == far.statistics().bytes_received == 4
    assert near.statistics().bytes_received == far.statistics().bytes_sent == 3


async def test_a_closed_pair_serves_nothing() -> None:
    for closing, error in ((0, ChannelClosedError), (1, ChannelBrokenError)):
        ends = local_pair()

        async def answer(request: Message) -> Message:
            raise AssertionError("served after the end")

        ends[1].serve(answer)
        await ends[closing].aclose()
        with pytest.raises(error):
            await ends[0].request_response(Message(MessageKind.REQUEST, 1))


async def test_what_a_handler_raises_reaches_the_caller() -> None:
    near, far = local_pair()

    async def fail(request: Message) -> Message:
        raise KeyError("mine")

    far.serve(fail)
    with pytest.raises(KeyError, match="mine"):
        await near.request_response(Message(MessageKind.REQUEST, 1))


async def test_waiting_senders_take_turns() -> None:
    near, far = local_pair()

    async def fill() -> None:
        while True:
            await near.send(Message(MessageKind.DATA, 0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        for number in range(1, 6):
            nursery.start_soon(near.send, Message(MessageKind.DATA, number))
            await trio.testing.wait_all_tasks_blocked()
        ids: list[int] = []
        while not ids or ids[-1] != 5:
            ids.append((await far.receive()).id)
    assert ids[-6:] == [0, 1, 2, 3, 4, 5]


async def test_two_transports_know_nothing_of_each_other() -> None:
    one, other = MemoryTransport(), MemoryTransport()
    async with one.listen("memory://same"), other.listen("memory://same"):
        pass


async def test_a_session_runs_on_it() -> None:
    async def echo(call: Call) -> Reply:
        return Reply(call.args, call.payload)

    near, far = local_pair()
    async with (
        open_session(far, initiator=False, handler=echo),
        open_session(near, initiator=True) as client,
    ):
        payload = bytes(1 << 20)
        assert (await client.request("echo", {"a": 1}, payload)).payload == payload
