"""What callers may pass to a store, and what they are told when they may not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spear_core.api import (
    Compare,
    KeyValue,
    MetadataChange,
    ObjectOperation,
    ObjectStat,
    PutKey,
    PutObject,
)
from spear_core.errors import (
    CompactedError,
    InvalidRequestError,
    ObjectConflictError,
    ObjectNotFoundError,
)

__all__ = [
    "MAX_CHANGES",
    "MAX_KEY",
    "MAX_METADATA_VALUE",
    "check_holder",
    "check_limit",
    "check_metadata_key",
    "check_object_key",
    "check_operations",
    "check_size",
    "check_transaction",
    "check_ttl",
    "compare_holds",
    "object_as_expected",
    "object_conflict",
    "past_revision",
    "version_gone",
]

MAX_KEY = 400
"""Bytes of a key, in both kinds of store."""

MAX_HOLDER = 200
"""Bytes of a holder's name."""

MAX_CONTENT_TYPE = 200
"""Bytes of a content type in UTF-8."""

MAX_METADATA_VALUE = 1 << 20

MAX_CHANGES = 128
"""Changes in one transaction, in both kinds of store (etcd's default)."""


def check_object_key(key: str, what: str = "key") -> bytes:
    """The key in UTF-8. **Raises** :exc:`~spear_core.errors.InvalidRequestError`."""
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{what}: must be text that UTF-8 can express") from None
    if not 0 < len(encoded) <= MAX_KEY:
        raise InvalidRequestError(
            f"{what}: must have 1 to {MAX_KEY} bytes in UTF-8, not {len(encoded)}"
        )
    return encoded


def check_holder(holder: str, *, named: bool = False) -> bytes:
    """The name in UTF-8. **Raises** :exc:`~spear_core.errors.InvalidRequestError`."""
    try:
        encoded = holder.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("holder: must be text that UTF-8 can express") from None
    if len(encoded) > MAX_HOLDER or b"\0" in encoded or (named and not encoded):
        raise InvalidRequestError(
            f"holder: must have {int(named)} to {MAX_HOLDER} bytes in UTF-8, none of them NUL"
        )
    return encoded


def check_operations(operations: Sequence[ObjectOperation]) -> None:
    """**Raises** :exc:`~spear_core.errors.InvalidRequestError` for what
    :meth:`~spear_core.api.ObjectStore.transact` does not take."""
    if len(operations) > MAX_CHANGES:
        raise InvalidRequestError(
            f"a transaction has at most {MAX_CHANGES} operations, not {len(operations)}"
        )
    seen = set()
    for operation in operations:
        check_object_key(operation.key)
        if operation.key in seen:
            raise InvalidRequestError(
                f"two operations of one transaction name the key {operation.key!r}"
            )
        seen.add(operation.key)
        if isinstance(operation, PutObject):
            _check_content_type(operation.content_type)
            if operation.ttl is not None:
                check_ttl(operation.ttl)


def _check_content_type(content_type: str) -> None:
    try:
        length = len(content_type.encode())
    except UnicodeEncodeError:
        length = MAX_CONTENT_TYPE + 1
    if length > MAX_CONTENT_TYPE:
        raise InvalidRequestError(
            f"content_type: must have at most {MAX_CONTENT_TYPE} bytes in UTF-8"
        )


def check_size(size: int | None) -> None:
    """**Raises** :exc:`~spear_core.errors.InvalidRequestError` for an announced size that is
    none."""
    if size is not None and size < 0:
        raise InvalidRequestError(f"size: must be at least 0, not {size}")


def object_as_expected(found: ObjectStat | None, expect: int | str) -> bool:
    """Whether an object is at the version, or has the content hash, that a caller names."""
    if isinstance(expect, int):
        return expect == (found.version if found else 0)
    return found is not None and bool(expect) and expect == found.sha256


def check_metadata_key(key: bytes) -> None:
    """**Raises** :exc:`~spear_core.errors.InvalidRequestError`."""
    if not 0 < len(key) <= MAX_KEY:
        raise InvalidRequestError(f"key: must have 1 to {MAX_KEY} bytes, not {len(key)}")


def check_limit(limit: int) -> None:
    """**Raises** :exc:`~spear_core.errors.InvalidRequestError`."""
    if limit < 1:
        raise InvalidRequestError(f"limit: must be at least 1, not {limit}")


def check_ttl(ttl: float) -> None:
    """**Raises** :exc:`~spear_core.errors.InvalidRequestError`."""
    if not (ttl > 0 and math.isfinite(ttl)):
        raise InvalidRequestError(f"ttl: must be a number of seconds above 0, not {ttl}")


def check_transaction(changes: Sequence[MetadataChange], compares: Sequence[Compare]) -> None:
    """**Raises** :exc:`~spear_core.errors.InvalidRequestError` for what
    :meth:`~spear_core.api.MetadataStore.transact` does not take."""
    if len(changes) > MAX_CHANGES or len(compares) > MAX_CHANGES:
        raise InvalidRequestError(
            f"a transaction has at most {MAX_CHANGES} changes and as many comparisons, "
            f"not {len(changes)} and {len(compares)}"
        )
    for compare in compares:
        check_metadata_key(compare.key)
    seen = set()
    for change in changes:
        check_metadata_key(change.key)
        if change.key in seen:
            raise InvalidRequestError(f"two changes of one transaction name the key {change.key!r}")
        seen.add(change.key)
        if isinstance(change, PutKey) and len(change.value) > MAX_METADATA_VALUE:
            raise InvalidRequestError(
                f"value of {change.key!r}: at most {MAX_METADATA_VALUE} bytes, "
                f"not {len(change.value)}; put large values into the object store"
            )


def compare_holds(compare: Compare, found: KeyValue | None) -> bool:
    """Whether a key is as the comparison wants it."""
    if compare.exists is not None and compare.exists != (found is not None):
        return False
    if compare.value is not None and (found is None or found.value != compare.value):
        return False
    mod_revision = found.mod_revision if found else 0
    if compare.mod_revision is not None and compare.mod_revision != mod_revision:
        return False
    create_revision = found.create_revision if found else 0
    return compare.create_revision is None or compare.create_revision == create_revision


def past_revision(revision: int, *, compacted: int, current: int) -> None:
    """Refuse a revision that cannot be read: compacted, or still to come.

    :param compacted: the oldest that can. :param current: the newest.
    """
    if revision < compacted:
        raise CompactedError(
            f"revision {revision} has been compacted, the oldest left is {compacted}; read anew",
            compacted=compacted,
        )
    if revision > current:
        raise InvalidRequestError(f"revision {revision} is still to come, this one is {current}")


def object_conflict(key: str, found: ObjectStat | None, expect: int | str) -> ObjectConflictError:
    """What to raise when an object is not at the version (or content hash) that was expected."""
    current = found.version if found else 0
    if expect == 0:
        text = f"object {key!r} exists already, at version {current}"
    else:
        state = f"is at version {current}" if found else "does not exist"
        wanted = f"version {expect}" if isinstance(expect, int) else f"the content {expect[:12]}…"
        text = f"object {key!r} {state}, not at {wanted}; read it again and retry"
    return ObjectConflictError(text, current=current)


def version_gone(key: str, version: int, current: int | None) -> ObjectNotFoundError:
    """What to raise when a version is asked for that cannot be seen.

    :param current: the version that is; ``None``: there is no such object.
    """
    if current is None:
        return ObjectNotFoundError(
            f"there is no object {key!r}, nor its version {version} any more"
        )
    if version > current:
        return ObjectNotFoundError(
            f"object {key!r} has no version {version} yet, it is at {current}"
        )
    return ObjectNotFoundError(
        f"version {version} of object {key!r} is gone, it is at version {current}"
    )
