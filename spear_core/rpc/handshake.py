"""The first frame each way: who is there, which version, and the secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from spear_core.api import Channel, Message, MessageKind
from spear_core.errors import ChannelAuthError, ProtocolError
from spear_core.rpc.codec import decode_head, encode_head

__all__ = ["PROTOCOL_VERSION", "hello", "welcome"]

PROTOCOL_VERSION = 1


async def hello(channel: Channel, head: dict[str, Any]) -> dict[str, Any]:
    """The connecting side's part: send ``head`` as HELLO and return the WELCOME's head.

    With ``"fds": True`` in both heads, file descriptors pass from then on.

    **Raises** :exc:`~spear_core.errors.ChannelAuthError` when the other side refuses. Bound the
    wait from outside.
    """
    await channel.send(
        Message(MessageKind.HELLO, head=encode_head({"v": PROTOCOL_VERSION, **head}))
    )
    try:
        message = await channel.receive()
    except trio.EndOfChannel:
        raise ChannelAuthError("the other side refused the connection") from None
    answer: dict[str, Any] = decode_head(message.head, dict)
    if message.kind == MessageKind.GOAWAY:
        raise ChannelAuthError(f"the other side refused the connection: {answer.get('reason')}")
    if message.kind != MessageKind.WELCOME:
        raise ProtocolError(f"expected WELCOME, got a message of kind {message.kind}")
    if head.get("fds") is True and answer.get("fds") is True and channel.can_pass_fds:
        channel.pass_fds()
    return answer


async def welcome(
    channel: Channel, verify: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """The accepting side's part: wait for HELLO, answer WELCOME and return the HELLO's head.

    :param verify: takes the HELLO's head and gives the WELCOME's; raises
        :exc:`~spear_core.errors.ChannelAuthError` to refuse, and the peer is told nothing.

    File descriptors pass from then on if the HELLO asks for it and the channel can; the WELCOME
    says so.

    On any failure the channel is closed. **Raises** what ``verify`` raises,
    :exc:`~spear_core.errors.ChannelAuthError` for another protocol version,
    :exc:`~spear_core.errors.ChannelError` for anything but a HELLO. Bound the wait from outside.
    """
    try:
        try:
            message = await channel.receive()
        except trio.EndOfChannel:
            raise ChannelAuthError("the other side left without a word") from None
        if message.kind != MessageKind.HELLO:
            raise ProtocolError(f"expected HELLO, got a message of kind {message.kind}")
        head: dict[str, Any] = decode_head(message.head, dict)
        if head.get("v") != PROTOCOL_VERSION:
            reason = f"protocol version {head.get('v')!r}; this side speaks {PROTOCOL_VERSION}"
            await channel.send(Message(MessageKind.GOAWAY, head=encode_head({"reason": reason})))
            raise ChannelAuthError(f"the other side speaks {reason}")
        answer = {"v": PROTOCOL_VERSION, **verify(head)}
        passes_fds = head.get("fds") is True and channel.can_pass_fds
        if passes_fds:
            answer["fds"] = True
        await channel.send(Message(MessageKind.WELCOME, head=encode_head(answer)))
        if passes_fds:
            channel.pass_fds()
    except BaseException:
        await trio.aclose_forcefully(channel)
        raise
    return head
