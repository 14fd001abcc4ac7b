"""The built-in store and scheduler keep the promises of their interfaces."""

from __future__ import annotations

from spear_core.builtins import plugin
from spear_core.builtins.memory_store import MemoryStoreConfig
from spear_core.testing import ObjectStoreContract, SchedulerContract


class TestMemoryStore(ObjectStoreContract):
    (spec,) = plugin.spear_object_stores()
    small_config = MemoryStoreConfig(memory_store_bytes=100_000)


class TestLocalFirst(SchedulerContract):
    (spec,) = plugin.spear_schedulers()
