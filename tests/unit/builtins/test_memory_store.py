"""What the memory store does beyond the contract of stores."""

from __future__ import annotations

import pytest

from spear_core.builtins.memory_store import MemoryObjectStore
from spear_core.errors import InvalidRequestError, ObjectConflictError, StoreFullError


async def test_full_says_what_to_do() -> None:
    store = MemoryObjectStore(max_bytes=10)
    await store.put("k", b"12345678")
    with pytest.raises(StoreFullError, match=r"'new'.*10 bytes \(8 in use\).*memory_store_bytes"):
        await store.put("new", b"123")
    await store.put("exact", b"12")


async def test_conflicts_say_what_is_there() -> None:
    store = MemoryObjectStore(max_bytes=10)
    with pytest.raises(ObjectConflictError, match="'k' does not exist, not at version 3"):
        await store.put("k", b"", expect=3)
    await store.put("k", b"")
    with pytest.raises(ObjectConflictError, match="exists already, at version 1"):
        await store.put("k", b"", expect=0)


async def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="limit"):
        await MemoryObjectStore(max_bytes=10).list(limit=0)
