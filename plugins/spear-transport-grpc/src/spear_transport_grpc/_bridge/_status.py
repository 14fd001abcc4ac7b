"""How a call ends."""

from __future__ import annotations

import enum

__all__ = ["ACCEPTED", "Metadata", "RpcError", "StatusCode"]

Metadata = tuple[tuple[str, str | bytes], ...]
"""Pairs of key and value; the values of keys that end in ``-bin`` are bytes."""
ACCEPTED: Metadata = (("spear-accepted", "1"),)
"""Comes before the first message, of calls with any number of them. C-core shows a call that was
refused as one whose metadata is empty."""


class StatusCode(enum.IntEnum):
    """gRPC's status codes, by their numbers on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @classmethod
    def of(cls, number: int) -> StatusCode:
        """The code of this number; ``UNKNOWN`` for one that does not exist."""
        return cls(number) if number in cls._value2member_map_ else cls.UNKNOWN


class RpcError(Exception):
    """A call ended with another status than OK.

    A handler raises it to say how; a client gets it.

    :param trailing: metadata that goes with the status.
    """

    def __init__(self, code: StatusCode, details: str, *, trailing: Metadata = ()) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details
        self.trailing = trailing
