"""The LMDB stores keep the promises of their interfaces."""

from __future__ import annotations

import pytest

from spear_core.testing import MetadataStoreContract, ObjectStoreContract, assert_plugin_ok
from spear_store_lmdb import _recycled_files, plugin
from spear_store_lmdb._config import LmdbMetadataConfig, LmdbObjectsConfig


def test_plugin_is_in_order() -> None:
    assert_plugin_ok("store-lmdb", engines=("lmdb",))


class TestMetadata(MetadataStoreContract):
    (spec,) = plugin.spear_metadata_stores()
    small_config = LmdbMetadataConfig(metadata_bytes=100_000)
    durable = True


class TestMetadataWithoutSync(TestMetadata):
    config = LmdbMetadataConfig(metadata_durability="process")


class TestObjects(ObjectStoreContract):
    (spec,) = plugin.spear_object_stores()
    small_config = LmdbObjectsConfig(objects_bytes=100_000)
    durable = True


class TestObjectsWithoutSync(TestObjects):
    config = LmdbObjectsConfig(objects_durability="process")


class TestObjectsInFiles(TestObjects):
    config = LmdbObjectsConfig(inline_bytes=0)


class TestObjectsInRecycledFiles(TestObjects):
    config = LmdbObjectsConfig(objects_durability="process", inline_bytes=0)

    @pytest.fixture(autouse=True)
    def whatever_their_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_recycled_files, "_LEAST", 1)
