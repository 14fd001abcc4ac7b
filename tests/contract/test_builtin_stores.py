"""The built-in store and scheduler keep the promises of their interfaces."""

from __future__ import annotations

from spear_core.builtins import plugin
from spear_core.builtins.memory_metadata import MemoryMetadataConfig
from spear_core.builtins.memory_store import MemoryStoreConfig
from spear_core.testing import MetadataStoreContract, ObjectStoreContract, SchedulerContract


class TestMemoryStore(ObjectStoreContract):
    (spec,) = plugin.spear_object_stores()
    small_config = MemoryStoreConfig(memory_store_bytes=100_000)


class TestMemoryStoreWithoutRecycling(TestMemoryStore):
    config = MemoryStoreConfig(memory_recycle_bytes=0)


class TestMemoryMetadata(MetadataStoreContract):
    (spec,) = plugin.spear_metadata_stores()
    small_config = MemoryMetadataConfig(memory_metadata_bytes=100_000)


class TestLocalFirst(SchedulerContract):
    (spec,) = plugin.spear_schedulers()
