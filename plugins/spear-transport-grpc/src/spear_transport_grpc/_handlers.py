"""Calls of the public services: messages instead of bytes, statuses instead of errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from spear_core.errors import InvalidRequestError, SpearError
from spear_transport_grpc._bridge import RpcError, ServerCall, Streaming, Unary
from spear_transport_grpc._errors import error_to_status

__all__ = ["parsed", "streaming", "unary"]

M = TypeVar("M", bound=Message)
_log = logging.getLogger("spear.transport-grpc")


def parsed(cls: type[M], data: bytes | None) -> M:
    """A message of this class. **Raises** :exc:`InvalidRequestError` for anything else."""
    if data is None:
        raise InvalidRequestError(f"{cls.__name__} is missing: the call ended without it")
    try:
        return cls.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(f"this is no {cls.__name__}: {error}") from error


def unary(cls: type[Message], do: Callable[..., Awaitable[Message]]) -> Unary:
    """A method that takes one message, of class ``cls``, and gives one."""

    async def handle(data: bytes, call: ServerCall) -> bytes:
        try:
            return (await do(parsed(cls, data), call)).SerializeToString()
        except Exception as error:  # barrier: one call
            raise _as_status(error) from error

    return Unary(handle)


def streaming(do: Callable[[ServerCall], Awaitable[None]]) -> Streaming:
    """A method that receives and sends as it likes."""

    async def handle(call: ServerCall) -> None:
        try:
            await do(call)
        except Exception as error:  # barrier: one call
            raise _as_status(error) from error

    return Streaming(handle)


def _as_status(error: Exception) -> RpcError:
    if isinstance(error, SpearError):
        return error_to_status(error)
    _log.error("a call failed", exc_info=error)
    return error_to_status(SpearError(f"{type(error).__name__}: {error}"))
