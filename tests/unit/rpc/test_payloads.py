"""Payloads of any size as messages, and files beside small ones."""

from __future__ import annotations

import pytest

from spear_core.api import Message, MessageFlag, MessageKind
from spear_core.builtins.memory_transport import local_pair
from spear_core.errors import InvalidRequestError
from spear_core.rpc._payloads import CHUNK, PayloadSender

MOST = 3 * CHUNK
MORE = MessageFlag.MORE


async def sent(payload: bytes) -> list[Message]:
    near, far = local_pair()
    sender = PayloadSender(near, max_message=MOST)
    async with near, far:
        await sender.send(MessageKind.NOTICE, 7, 64, b"head", payload)
        messages = [await far.receive()]
        while messages[-1].flags & MORE:
            messages.append(await far.receive())
    assert b"".join(message.payload for message in messages) == payload
    assert {message.id for message in messages} == {7}
    return messages


@pytest.mark.parametrize("size", [0, 1, CHUNK])
async def test_what_fits_is_one_message(size: int) -> None:
    (message,) = await sent(bytes(size))
    assert (message.kind, message.flags, message.head) == (MessageKind.NOTICE, 64, b"head")


@pytest.mark.parametrize("size", [CHUNK + 1, 2 * CHUNK, MOST])
async def test_what_does_not_goes_in_pieces_with_one_head(size: int) -> None:
    first, *others = await sent(bytes(range(256)) * (size // 256) + bytes(size % 256))
    assert (first.kind, first.flags, first.head) == (MessageKind.NOTICE, 64 | MORE, b"head")
    assert {(piece.kind, piece.head) for piece in others} == {(MessageKind.DATA, b"")}
    assert [piece.flags for piece in others] == [MORE] * (len(others) - 1) + [0]
    assert max(len(piece.payload) for piece in (first, *others)) == CHUNK


async def test_nothing_is_sent_of_more_than_is_allowed() -> None:
    near, far = local_pair()
    sender = PayloadSender(near, max_message=MOST)
    async with near, far:
        with pytest.raises(InvalidRequestError, match=f"at most {MOST} bytes, this one {MOST + 1}"):
            await sender.send(MessageKind.NOTICE, 1, 0, b"", bytes(MOST + 1))
        await sender.send(MessageKind.NOTICE, 2, 0, b"", b"")
        assert (await far.receive()).id == 2


async def test_no_file_can_go_where_the_channel_passes_none() -> None:
    near, far = local_pair()
    async with near, far:
        with pytest.raises(InvalidRequestError, match="no files"):
            PayloadSender(near, max_message=MOST).check_beside_fd(b"")
