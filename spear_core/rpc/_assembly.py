"""Puts payloads together again that came in pieces."""

from __future__ import annotations

import attrs

from spear_core.api import Message, MessageFlag

__all__ = ["Assembler", "TooLarge"]

_FRAME_COST = 64
"""What a piece costs beside its bytes, so that a flood of empty ones ends too."""


class TooLarge(Exception):  # noqa: N818 - a verdict on one message, not a fault of ours
    """The message with this id has been dropped; its later pieces will not be known."""


@attrs.define
class _Partial:
    first: Message
    parts: list[bytes | bytearray | memoryview]
    size: int


class Assembler:
    """The messages of one session of which only a part is here.

    :param max_message: bytes one payload may have.
    :param max_total: bytes all that are incomplete may have together.
    """

    def __init__(self, *, max_message: int, max_total: int) -> None:
        self._max_message = max_message
        self._max_total = max_total
        self._partial: dict[int, _Partial] = {}
        self._total = 0

    def __contains__(self, id_: object) -> bool:
        return id_ in self._partial

    def begin(self, message: Message) -> None:
        """Take the first piece. **Raises** :exc:`TooLarge`."""
        self._partial[message.id] = _Partial(message, [], 0)
        self._add(message)

    def first(self, id_: int) -> Message:
        """The piece that the message began with."""
        return self._partial[id_].first

    def add(self, message: Message) -> Message | None:
        """Take a further piece; the whole message once it is complete. **Raises**
        :exc:`TooLarge`."""
        self._add(message)
        if message.flags & MessageFlag.MORE:
            return None
        partial = self._drop(message.id)
        first = partial.first
        flags = first.flags & ~MessageFlag.MORE
        return Message(first.kind, first.id, flags, first.head, b"".join(partial.parts))

    def drop(self, id_: int) -> None:
        """Forget the message with this id, if there is one."""
        if id_ in self._partial:
            self._drop(id_)

    def _add(self, message: Message) -> None:
        partial = self._partial[message.id]
        cost = len(message.payload) + _FRAME_COST
        partial.parts.append(message.payload)
        partial.size += cost
        self._total += cost
        if partial.size > self._max_message + _FRAME_COST * len(partial.parts) or (
            self._total > self._max_total
        ):
            self._drop(message.id)
            raise TooLarge

    def _drop(self, id_: int) -> _Partial:
        partial = self._partial.pop(id_)
        self._total -= partial.size
        return partial
