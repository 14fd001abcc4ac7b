"""The heads of the hostcalls ``objects.*`` (``docs/objects.md``)."""

from __future__ import annotations

from typing import Literal

import msgspec

from spear_core.api import OCTETS

__all__ = [
    "DeleteHead",
    "HandleHead",
    "KeyHead",
    "ListHead",
    "OpenHead",
    "OperationHead",
    "PutHead",
    "ReadHead",
    "TransactHead",
    "WriteHead",
]


class KeyHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``stat``, ``add_ref``, ``remove_ref``, ``pin`` and ``unpin``."""

    key: str


class OpenHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``get`` and ``open``."""

    key: str
    version: int | None = None


class PutHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``put`` and ``create``."""

    key: str
    expect: int | str | None = None
    content_type: str = OCTETS
    ttl: float | None = None
    hashed: bool = True
    size: int | None = None
    """Of a file that comes along; of all that will be written."""


class DeleteHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``delete``."""

    key: str
    expect: int | str | None = None


class ListHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``list``."""

    prefix: str = ""
    after: str | None = None
    limit: int = 1000


class OperationHead(msgspec.Struct, forbid_unknown_fields=True):
    """One operation of ``transact``."""

    op: Literal["put", "delete", "check"]
    key: str
    expect: int | str | None = None
    content_type: str = OCTETS
    ttl: float | None = None
    hashed: bool = True
    size: int = 0
    """Of the value of a put: so many bytes of those that follow the head."""


class TransactHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``transact``."""

    operations: list[OperationHead]


class HandleHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``commit`` and ``close``."""

    handle: str
    pipe: bool = False
    """Some send back all that ``create`` has answered."""


class WriteHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``write``."""

    handle: str
    pipe: bool = False
    size: int | None = None
    """How many bytes come through the pipe that comes along."""


class ReadHead(msgspec.Struct, forbid_unknown_fields=True):
    """Of ``read``."""

    handle: str
    offset: int
    length: int
