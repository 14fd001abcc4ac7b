"""What the built-in hostcalls are asked and answer: a head in JSON, and bytes.

The head's length as four bytes, little end first, the head, the rest (``docs/calls.md``).
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from spear_core.errors import InvalidRequestError

__all__ = ["pack", "unpack"]

T = TypeVar("T")

_LENGTH = struct.Struct("<I")


def pack(head: object, *parts: bytes | memoryview) -> bytes:
    """An answer: the head, then the parts one after the other."""
    data = msgspec.json.encode(head)
    return b"".join((_LENGTH.pack(len(data)), data, *parts))


def unpack(name: str, payload: bytes, head_type: type[T]) -> tuple[T, memoryview]:
    """A call's head and the rest. **Raises** :exc:`~spear_core.errors.InvalidRequestError`."""
    end = _LENGTH.size
    if len(payload) >= end:
        end += _LENGTH.unpack_from(payload)[0]
    if len(payload) < max(end, _LENGTH.size):
        raise InvalidRequestError(f"{name}: the payload ends within its head")
    view = memoryview(payload)
    try:
        return msgspec.json.decode(view[_LENGTH.size : end], type=head_type), view[end:]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{name}: the head is not understood: {error}") from error
