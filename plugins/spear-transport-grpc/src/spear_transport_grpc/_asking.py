"""Calls to a node, with their failures put in a client's words."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from spear_core.errors import NodeUnreachableError, ProtocolError, SpearError
from spear_transport_grpc._bridge import ClientCall, ClientChannel, RpcError, StatusCode
from spear_transport_grpc._errors import status_to_error

__all__ = ["Asking"]

M = TypeVar("M", bound=Message)

_NEVER_THERE = (
    "failed to connect",
    "errors resolving",
    "dns resolution failed",
    "the channel is closed",
)
"""How the details begin, in lower case, when C-core had no connection that the call could go on."""
_LOOKS = ("Get", "List", "Read", "Stat", "Watch", "Follow")
_TAKE_A_LOOK = "it may have been done or not. When the node is back, look before you do it again"
_AFTERWARDS = {
    "InvokeFunction": (
        "the function may have run or not. When the node is back, `spear ps` says what became of "
        "its task; calling again may run it twice, unless the request has an idempotency key"
    ),
    "StreamFunction": (
        "the function has run in part, or to its end. When the node is back, `spear ps` says what "
        "became of its task; a new stream runs it anew"
    ),
    "DeployArtifact": (
        "the version may be there or not. Deploy it again when the node is back: the same code "
        "with the same settings gives the same version"
    ),
    "Backup": "the backup is not there, unless it is whole: look before you make another",
    "CancelTask": "the task may go on or not. Cancel it again when the node is back",
    **dict.fromkeys(
        ("PutObject", "TransactObjects"),
        "it may have been written or not. When the node is back, compare the version of the object,"
        " or write again with `expect`, which does nothing twice",
    ),
    **dict.fromkeys(
        ("SetLatest", "SetState", "ReloadConfig", "PinObject"),
        "it may have been done or not. Do it again when the node is back: twice is as good as once",
    ),
}
"""What may have happened, and what to do, when a node has gone in the middle of a call."""


class Asking:
    """Calls over one channel.

    :param where: the node's address, for messages.
    """

    def __init__(self, channel: ClientChannel, where: str) -> None:
        self.channel = channel
        self.where = where

    async def ask(self, method: str, request: Message, answer: type[M]) -> M:
        """One message there (to ``Service/Method``), one back.

        **Raises** what the node raised, and :exc:`~spear_core.errors.NodeUnreachableError`.
        """
        try:
            data = await self.channel.call(f"/spear.v1.{method}", request.SerializeToString())
        except RpcError as error:
            raise self.error(error, method) from error
        return self.read(answer, data)

    @asynccontextmanager
    async def open(self, method: str) -> AsyncGenerator[ClientCall]:
        """A call with any number of messages; what leaves the block as an :exc:`RpcError` is put
        in our words."""
        try:
            async with self.channel.open_call(f"/spear.v1.{method}") as call:
                yield call
        except RpcError as error:
            raise self.error(error, method) from error

    def read(self, cls: type[M], data: bytes | None) -> M:
        """An answer. **Raises** :exc:`~spear_core.errors.ProtocolError` when it is none."""
        if data is None:
            raise ProtocolError(
                f"the node at {self.where} ended a call without the {cls.__name__} that belongs to"
                " it"
            )
        try:
            return cls.FromString(data)
        except DecodeError as error:
            raise ProtocolError(
                f"the answer of the node at {self.where} is not understood: {error}"
            ) from error

    def error(self, error: RpcError, method: str) -> SpearError:
        """Why a call of ``Service/Method`` ended."""
        known = status_to_error(error, self.where)
        if not isinstance(known, NodeUnreachableError) or error.code is not StatusCode.UNAVAILABLE:
            return known
        name = method.rpartition("/")[2]
        details = error.details or "the connection broke"
        if details.lower().startswith(_NEVER_THERE):
            return NodeUnreachableError(
                f"no node answers at {self.where}, and {name} was not begun: {details}"
            )
        if name.startswith(_LOOKS):
            then = "nothing was changed. Ask again when it is back"
        else:
            then = _AFTERWARDS.get(name, _TAKE_A_LOOK)
        return NodeUnreachableError(
            f"the node at {self.where} went away in the middle of {name} ({details}): {then}"
        )
