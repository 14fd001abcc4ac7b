"""ObjectApi on the wire (``docs/wire-format.md``), the node's side: small things are requests,
values are streams."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import trio

from spear_core.api import (
    OCTETS,
    CheckObject,
    DeleteObject,
    ObjectApi,
    ObjectOperation,
    PutObject,
)
from spear_core.errors import InvalidRequestError
from spear_core.rpc import Call, Reply, Stream
from spear_core.rpc.codec import encode_head

__all__ = ["PREFIX", "PackedOperation", "answer_objects", "serve_objects"]

T = TypeVar("T")

PREFIX = "objects."
Version = int | str | None


class PackedOperation(msgspec.Struct, omit_defaults=True):
    """A part of a transaction."""

    do: str
    """``put``, ``delete`` or ``check``."""
    key: str
    expect: Version = None
    value: bytes = b""
    content_type: str = OCTETS
    ttl: float | None = None
    hashed: bool = True


async def answer_objects(objects: ObjectApi, call: Call) -> Reply:
    """Do what a client's call asks of ``objects``.

    :raises SpearError: what the method raises.
    """
    if call.method == f"{PREFIX}transact":
        _arguments(call)
        operations = [_operation(each) for each in _decoded(call.payload, list[PackedOperation])]
        return _value(await objects.transact(operations))
    method = _METHODS.get(call.method)
    if method is None:
        raise InvalidRequestError(
            f"this node has no method {call.method!r}; it has {', '.join(_METHODS)}"
        )
    name, types = method
    arguments = _arguments(call, **types)
    if name == "put":
        key = _required(call, arguments, "key")
        return _value(await objects.put(key, call.payload, **arguments))
    if "key" in types:
        key = _required(call, arguments, "key")
        return _value(await getattr(objects, name)(key, **arguments))
    return _value(await getattr(objects, name)(**arguments))


_PUT: dict[str, Any] = {
    "key": str,
    "expect": Version,
    "content_type": str,
    "ttl": float | None,
    "hashed": bool,
}
_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{PREFIX}{name}": (name, types)
    for name, types in (
        ("put", _PUT),
        ("stat", {"key": str}),
        ("list", {"prefix": str, "after": str | None, "limit": int}),
        ("add_ref", {"key": str, "holder": str}),
        ("remove_ref", {"key": str, "holder": str}),
        ("holders", {"key": str}),
        ("pin", {"key": str}),
        ("unpin", {"key": str}),
        ("delete", {"key": str, "expect": Version}),
        ("usage", {}),
    )
}
"""Name on the wire → the method's, and its arguments."""


async def serve_objects(objects: ObjectApi, call: Call, stream: Stream) -> Reply:
    """Let a value run between a client's stream and ``objects``.

    :raises SpearError: what the method raises.
    """
    if call.method == f"{PREFIX}read":
        return await _serve_read(objects, call, stream)
    if call.method == f"{PREFIX}create":
        return await _serve_create(objects, call, stream)
    if call.method == f"{PREFIX}watch":
        return await _serve_watch(objects, call, stream)
    raise InvalidRequestError(f"this node has no stream {call.method!r}")


async def _serve_read(objects: ObjectApi, call: Call, stream: Stream) -> Reply:
    arguments = _arguments(call, key=str, version=int | None, offset=int)
    key = _required(call, arguments, "key")
    async with objects.read(key, **arguments) as reader:
        await stream.send(encode_head(reader.stat))
        async for piece in reader:
            await stream.send(piece)
        await stream.send_eof()
    return Reply()


async def _serve_create(objects: ObjectApi, call: Call, stream: Stream) -> Reply:
    arguments = _arguments(call, **_PUT, size=int | None)
    key = _required(call, arguments, "key")
    async with objects.create(key, **arguments) as writer:
        await stream.send(b"")
        try:
            while True:
                await writer.write(await stream.receive())
        except trio.EndOfChannel:  # said by the client alone, and only when it has sent all
            return _value(await writer.commit())


async def _serve_watch(objects: ObjectApi, call: Call, stream: Stream) -> Reply:
    arguments = _arguments(call, prefix=str, start_revision=int | None)
    async with objects.watch(**arguments) as changes:
        await stream.send(b"")
        async for found in changes:
            await stream.send(encode_head(found))
    return Reply()


def _arguments(call: Call, **types: Any) -> dict[str, Any]:
    """The call's arguments, each of its type; absent ones take the method's default."""
    if unknown := call.args.keys() - types.keys():
        raise InvalidRequestError(f"{call.method} has no argument {', '.join(sorted(unknown))}")
    try:
        return {name: msgspec.convert(value, types[name]) for name, value in call.args.items()}
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"malformed arguments: {error}") from error


def _required(call: Call, arguments: dict[str, Any], name: str) -> str:
    try:
        return str(arguments.pop(name))
    except KeyError:
        raise InvalidRequestError(f"{call.method} needs the argument {name}") from None


def _decoded(payload: bytes | bytearray | memoryview, type_: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=type_)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise InvalidRequestError(f"malformed operations: {error}") from error


def _operation(each: PackedOperation) -> ObjectOperation:
    if each.do == "put":
        return PutObject(
            key=each.key,
            value=each.value,
            expect=each.expect,
            content_type=each.content_type,
            ttl=each.ttl,
            hashed=each.hashed,
        )
    if each.do == "delete":
        return DeleteObject(key=each.key, expect=each.expect)
    if each.do == "check" and each.expect is not None:
        return CheckObject(key=each.key, expect=each.expect)
    raise InvalidRequestError(f"malformed operations: {each.do[:100]!r} of {each.key[:100]!r}")


def _value(value: object) -> Reply:
    return Reply({}, encode_head(value))
