"""What an older version of the plugin has written, in ``data/``, is brought to the present format.

``data/format1`` was written by the code of the first format, with ``inline_bytes=1000``.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import lmdb
import pytest

from spear_core.errors import StoreFormatError
from spear_core.testing import make_context
from spear_store_lmdb import (
    LmdbMetadataConfig,
    LmdbObjectsConfig,
    _folder,
    open_lmdb_metadata,
    open_lmdb_objects,
)

OLD = Path(__file__).with_name("data") / "format1"


def state(path: Path) -> Path:
    """A state directory with a copy of the old stores."""
    folder = make_context(path).state_dir
    shutil.copytree(OLD, folder)
    return folder


def format_of(folder: Path) -> bytes:
    with lmdb.open(str(folder), max_dbs=20, readonly=True, lock=False) as env, env.begin() as txn:
        found: bytes = txn.get(b"format", db=env.open_db(b"meta", txn, create=False))
    return found


async def test_objects_of_the_first_format(tmp_path: Path) -> None:
    where = state(tmp_path) / "objects"
    assert format_of(where) == b"1"
    for _ in range(2):
        async with open_lmdb_objects(make_context(tmp_path), LmdbObjectsConfig()) as store:
            values = {stat.key: await store.get(stat.key) for stat in (await store.list()).objects}
            assert {key: value for key, (_, value) in values.items()} == {
                "a": b"two",
                "expires": b"later",
                "held": b"",
                "large": bytes(range(256)) * 20,
                "large bare": b"x" * 2000,
            }
            stats = {key: stat for key, (stat, _) in values.items()}
            assert stats["a"].pinned
            assert stats["a"].version == 2
            assert stats["large bare"].sha256 == ""
            assert len(stats["large"].sha256) == 64
            assert (stats["expires"].expires_at or 0) > time.time()
            assert {h.name: (h.refs, h.ttl) for h in await store.holders("held")} == {
                "": (1, None),
                "h": (2, 3600.0),
            }
        assert format_of(where) == b"2"
    async with open_lmdb_objects(make_context(tmp_path), LmdbObjectsConfig()) as store:
        assert (await store.put("gone", b"")).version == 3


async def test_metadata_of_the_first_format(tmp_path: Path) -> None:
    where = state(tmp_path) / "metadata"
    assert format_of(where) == b"1"
    async with open_lmdb_metadata(make_context(tmp_path), LmdbMetadataConfig()) as store:
        page = await store.range()
        assert [(item.key, item.value, item.version) for item in page.items] == [
            (b"k", b"2", 2),
            (b"leased", b"x", 1),
        ]
        assert page.items[1].lease == 1
        past = await store.range(revision=page.revision - 1)
        assert [item.key for item in past.items] == [b"gone", b"k", b"leased"]
        first = await store.get(b"k", revision=1)
        assert first is not None
        assert first.value == b"1"
        await store.revoke_lease(1)
        assert [item.key for item in (await store.range()).items] == [b"k"]
    assert format_of(where) == b"2"


@pytest.mark.parametrize("kind", ["objects", "metadata"])
async def test_a_migration_that_fails_has_changed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    where = state(tmp_path) / kind
    monkeypatch.setattr(_folder, "FORMAT", 3)
    with pytest.raises(StoreFormatError, match="format 2, which is unknown"):
        async with (
            open_lmdb_objects(make_context(tmp_path), LmdbObjectsConfig())
            if kind == "objects"
            else open_lmdb_metadata(make_context(tmp_path), LmdbMetadataConfig())
        ):
            pass
    assert format_of(where) == b"2", "what was done, was done whole"


async def test_a_migration_needs_more_room_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map grows while all records are written anew."""
    where = state(tmp_path) / "objects"
    with lmdb.open(str(where), max_dbs=20, map_size=1 << 30) as env:
        objects = env.open_db(b"objects")
        with env.begin(write=True) as txn:
            raw = txn.get(b"a", db=objects)
            for number in range(3000):
                txn.put(b"more %04d" % number, raw, db=objects)
    monkeypatch.setattr(_folder, "_FIRST_MAP", 4096)
    monkeypatch.setattr(_folder, "_SPARE", 1)
    async with open_lmdb_objects(make_context(tmp_path), LmdbObjectsConfig()) as store:
        assert (await store.get("more 2999"))[1] == b"two"
        assert len((await store.list("more", limit=5000)).objects) == 3000
