"""What is done with objects, as messages and back: expectations, states, parts of transactions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message

from spear_core.api import (
    OCTETS,
    CheckObject,
    DeleteObject,
    ObjectOperation,
    ObjectStat,
    PutObject,
    SealedFile,
)
from spear_core.errors import InvalidRequestError
from spear_transport_grpc._convert import converter
from spear_transport_grpc._protos.spear.v1 import object_pb2

__all__ = [
    "MOST_TRANSACTED",
    "check_transaction",
    "expectation",
    "expected",
    "filled",
    "operation_from_message",
    "operation_to_message",
    "state_from_message",
    "state_to_message",
    "write_settings",
]

M = TypeVar("M", bound=Message)

MOST_TRANSACTED = 32 << 20
"""Bytes that the values of one transaction may have together, as ObjectApi says."""


def expectation(expect: int | str | None) -> object_pb2.ObjectExpectation | None:
    """What an object must be, as a message."""
    if expect is None:
        return None
    try:
        if isinstance(expect, str):
            return object_pb2.ObjectExpectation(sha256=expect)
        return object_pb2.ObjectExpectation(version=expect)
    except (ValueError, TypeError):
        raise InvalidRequestError(
            f"expect: {expect!r} is neither a version of an object nor a sha256"
        ) from None


def filled(cls: type[M], **fields: Any) -> M:
    """The message. **Raises** :exc:`InvalidRequestError` for what it has no room for."""
    try:
        return cls(**fields)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"{cls.__name__}: {error}") from error


def expected(message: Any) -> int | str | None:
    """The inverse of :func:`expectation`, for the field ``expect`` of a message."""
    if not message.HasField("expect"):
        return None
    which = message.expect.WhichOneof("now")
    if which is None:
        raise InvalidRequestError("expect: it names neither a version nor a sha256")
    found: int | str = getattr(message.expect, which)
    return found


def write_settings(message: Any) -> dict[str, Any]:
    """The arguments of a write that a header, or a part of a transaction, has beside the key."""
    return {
        "expect": expected(message),
        "content_type": message.content_type or OCTETS,
        "ttl": message.ttl if message.HasField("ttl") else None,
        "hashed": message.hashed if message.HasField("hashed") else True,
    }


def operation_to_message(operation: ObjectOperation) -> object_pb2.ObjectOperation:
    """A part of a transaction. **Raises** :exc:`InvalidRequestError` for a file."""
    key, expect = operation.key, expectation(operation.expect)
    if isinstance(operation, DeleteObject):
        part = filled(object_pb2.DeleteObjectOperation, key=key, expect=expect)
        return object_pb2.ObjectOperation(delete=part)
    if isinstance(operation, CheckObject):
        check = filled(object_pb2.CheckObjectOperation, key=key, expect=expect)
        return object_pb2.ObjectOperation(check=check)
    put = filled(
        object_pb2.PutObjectOperation,
        key=key,
        value=_bytes_of(operation),
        expect=expect,
        content_type="" if operation.content_type == OCTETS else operation.content_type,
        ttl=operation.ttl,
        hashed=operation.hashed,
    )
    return object_pb2.ObjectOperation(put=put)


def _bytes_of(operation: PutObject) -> bytes:
    if isinstance(operation.value, SealedFile):
        raise InvalidRequestError(
            f"{operation.key[:100]!r}: a file cannot be put through a front door; send its bytes"
        )
    return bytes(operation.value)


def operation_from_message(message: object_pb2.ObjectOperation) -> ObjectOperation:
    """The inverse. **Raises** :exc:`InvalidRequestError` for one that says nothing."""
    which = message.WhichOneof("operation")
    if which == "put":
        put = message.put
        return PutObject(key=put.key, value=put.value, **write_settings(put))
    if which == "delete":
        return DeleteObject(key=message.delete.key, expect=expected(message.delete))
    if which == "check" and (expect := expected(message.check)) is not None:
        return CheckObject(key=message.check.key, expect=expect)
    raise InvalidRequestError(
        "operations: each puts, deletes, or checks; a check says what it expects"
    )


def check_transaction(operations: Iterable[object_pb2.ObjectOperation]) -> None:
    """**Raises** :exc:`InvalidRequestError` for values that are too much for one message."""
    size = sum(len(each.put.value) for each in operations)
    if size > MOST_TRANSACTED:
        raise InvalidRequestError(
            f"operations: the values of this transaction have {size} bytes; through a front door "
            f"at most {MOST_TRANSACTED} are allowed"
        )


def state_to_message(stat: ObjectStat | None) -> object_pb2.ObjectState:
    """What is left of an object."""
    now = None if stat is None else converter(ObjectStat).encode(stat)
    return object_pb2.ObjectState(now=now)


def state_from_message(message: object_pb2.ObjectState) -> ObjectStat | None:
    """The inverse."""
    return converter(ObjectStat).decode(message.now) if message.HasField("now") else None
