"""Backups while the stores are in use, the way back, and checks that find and repair."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import lmdb
import pytest
import trio

from spear_core.api import MetadataStore, ObjectStore, PutKey, StoreMaintenance, StoreReport
from spear_core.errors import (
    InvalidRequestError,
    ObjectNotFoundError,
    StoreCorruptError,
    StoreError,
    StoreFormatError,
    StoreInUseError,
)
from spear_core.testing import make_context
from spear_store_lmdb import (
    LmdbMetadataConfig,
    LmdbObjectsConfig,
    _backup,
    _checking,
    _environment,
    _object_check,
    open_lmdb_metadata,
    open_lmdb_objects,
    plugin,
)
from spear_store_lmdb._records import pack, unpack

LARGE = bytes(range(256)) * 800


@asynccontextmanager
async def objects(path: Path) -> AsyncGenerator[ObjectStore, None]:
    async with open_lmdb_objects(make_context(path), LmdbObjectsConfig()) as store:
        yield store


@asynccontextmanager
async def metadata(path: Path) -> AsyncGenerator[MetadataStore, None]:
    async with open_lmdb_metadata(make_context(path), LmdbMetadataConfig()) as store:
        yield store


async def checked(store: object, *, repair: bool = False) -> StoreReport:
    assert isinstance(store, StoreMaintenance)
    return await store.check(repair=repair)


async def backed_up(store: object, directory: Path) -> Any:
    assert isinstance(store, StoreMaintenance)
    return await store.backup(directory)


async def restored(path: Path, backup: Path, kind: str) -> None:
    (spec,) = getattr(plugin, f"spear_{kind}_stores")()
    await spec.restore(make_context(path), backup)


def names(folder: Path, pattern: str) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in folder.glob(pattern))


# ---- backups


async def test_a_backup_while_it_is_written_to(tmp_path: Path) -> None:
    """It is one revision: what two keys of one transaction say is the same, and every value is
    whole, though objects are written over and deleted all the time."""
    stop = False

    async def write(store: ObjectStore) -> None:
        number = 0
        while not stop:
            number += 1
            seed = b"%d" % number
            async with store.create("large") as writer:
                for _ in range(10):
                    await writer.write(seed.ljust(20_000, b"."))
                await writer.commit()
            await store.put("small", seed)
            if number % 3 == 0:
                await store.delete("small")

    async with objects(tmp_path / "a") as store:
        await store.put("pinned", LARGE)
        await store.pin("pinned")
        backups = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, store)
            for number in range(5):
                await trio.sleep(0.05)
                backups.append(await backed_up(store, tmp_path / f"backup {number}"))
            stop = True
        assert names(tmp_path, "*.partial") == []
        assert len(list((make_context(tmp_path / "a").state_dir / "objects/blobs").iterdir())) == 2
    revisions = [backup.revision for backup in backups]
    assert revisions == sorted(revisions)
    for number, backup in enumerate(backups):
        await restored(tmp_path / f"b{number}", tmp_path / f"backup {number}", "object")
        async with objects(tmp_path / f"b{number}") as store:
            page = await store.list()
            assert (page.revision, len(page.objects)) == (backup.revision, backup.records)
            for stat in page.objects:
                _, value = await store.get(stat.key)
                assert hashlib.sha256(value).hexdigest() == stat.sha256
            assert (await store.stat("pinned")).pinned
            assert await checked(store) == StoreReport(
                records=len(page.objects), bytes=sum(s.size for s in page.objects)
            )
            await store.put("pinned", b"goes on")
    async with objects(tmp_path / "a") as store:
        assert (await store.get("pinned"))[1] == LARGE, "the restored one is on its own"


async def test_a_backup_of_metadata(tmp_path: Path) -> None:
    async with metadata(tmp_path / "a") as store:
        lease = await store.grant_lease(1000.0)
        await store.transact(
            [PutKey(key=b"k", value=b"1"), PutKey(key=b"l", value=b"", lease=lease.id)]
        )
        await store.put(b"k", b"2")
        backup = await backed_up(store, tmp_path / "backup")
        await store.put(b"k", b"3")
        assert (backup.records, backup.revision) == (2, (await store.range()).revision - 1)
    await restored(tmp_path / "b", tmp_path / "backup", "metadata")
    async with metadata(tmp_path / "b") as store:
        page = await store.range()
        assert [(item.key, item.value) for item in page.items] == [(b"k", b"2"), (b"l", b"")]
        assert page.revision == backup.revision
        past = await store.get(b"k", revision=page.revision - 1)
        assert past is not None
        assert past.value == b"1"
        assert (await checked(store)).problems == ()


async def test_a_backup_on_another_disk_is_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*paths: object) -> None:
        raise OSError(18, os.strerror(18))

    monkeypatch.setattr(_backup.os, "link", refused)
    async with objects(tmp_path / "a") as store:
        await store.put("k", LARGE)
        await backed_up(store, tmp_path / "backup")
    (file,) = (tmp_path / "backup" / "blobs").iterdir()
    assert file.stat().st_nlink == 1
    assert file.read_bytes() == LARGE


async def test_a_backup_that_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    async with objects(tmp_path / "a") as store:
        await store.put("k", LARGE)
        (tmp_path / "there").mkdir()
        with pytest.raises(InvalidRequestError, match="exists already"):
            await backed_up(store, tmp_path / "there")
        with trio.CancelScope() as scope:
            scope.cancel()
            await backed_up(store, tmp_path / "cancelled")
        (blob,) = (make_context(tmp_path / "a").state_dir / "objects/blobs").iterdir()
        blob.unlink()
        with pytest.raises(StoreCorruptError, match="missing"):
            await backed_up(store, tmp_path / "broken")
    assert names(tmp_path, "*") == ["a", "there"]


async def test_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    async with objects(tmp_path / "a") as store:
        await store.put("k", LARGE)
        await backed_up(store, tmp_path / "backup")
        with pytest.raises(StoreInUseError, match="already"):
            await restored(tmp_path / "a", tmp_path / "backup", "object")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreFormatError, match="no backup"):
        await restored(tmp_path / "b", tmp_path / "empty", "object")
    with pytest.raises(StoreFormatError, match="spear objects"):
        await restored(tmp_path / "b", tmp_path / "backup", "metadata")
    shutil.copytree(tmp_path / "backup", tmp_path / "broken")
    for file in (tmp_path / "broken" / "blobs").iterdir():
        file.unlink()
    with pytest.raises(StoreCorruptError, match="missing"):
        await restored(tmp_path / "b", tmp_path / "broken", "object")
    (tmp_path / "broken" / "data.mdb").write_bytes(b"nothing of that kind\n" * 1000)
    with pytest.raises(StoreCorruptError, match="damaged"):
        await restored(tmp_path / "b", tmp_path / "broken", "object")
    assert not (make_context(tmp_path / "b").state_dir / "objects").exists()
    await restored(tmp_path / "b", tmp_path / "backup", "object")


# ---- checks

Harm = Callable[[Any, dict[str, Any]], None]


async def full(path: Path) -> None:
    """A store in which there is something of everything."""
    async with objects(path) as store:
        for key in ("a", "b", "c"):
            await store.put(key, key.encode())
        await store.put("large", LARGE)
        await store.put("expires", b"", ttl=10_000.0)
        for holder in ("", "h", "h", "i"):
            await store.add_ref("a", holder=holder)
        await store.keep_alive("h", 5000.0)
        for key in ("gone", "gone too"):
            await store.put(key, b"")
            await store.delete(key)
        assert (await checked(store)).problems == ()


def harm_objects(path: Path, harm: Harm) -> None:
    """Do something to the database of a closed store."""
    where = make_context(path).state_dir / "objects"
    with lmdb.open(str(where), max_dbs=20, map_size=1 << 30) as env:
        names = ("objects", "blobs", "expiry", "refs", "held", "silent", "deleted", "deletions")
        databases = {
            name: env.open_db(name.encode(), dupsort=name in ("refs", "held")) for name in names
        }
        databases["meta"] = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            harm(txn, databases)


def first(txn: Any, database: Any) -> tuple[bytes, bytes]:
    """Its first entry."""
    cursor = txn.cursor(db=database)
    assert cursor.first()
    return cursor.item()


def refs_miscounted(txn: Any, db: dict[str, Any]) -> None:
    record = unpack("a", txn.get(b"a", db=db["objects"]))
    txn.put(b"a", pack(attrs.evolve(record.stat, refs=9), "", b"a"), db=db["objects"])


HARMS: dict[str, tuple[Harm, str]] = {
    "used": (lambda t, db: t.put(b"used", b"7", db=db["meta"]), "number 'used'"),
    "revision": (lambda t, db: t.put(b"revision", b"1", db=db["meta"]), "number 'revision'"),
    "no number": (lambda t, db: t.put(b"used", b"x", db=db["meta"]), "number 'used'"),
    "refs": (refs_miscounted, "has 9 references, and its holders have 4"),
    "a reference to nothing": (
        lambda t, db: t.put(b"nothing", b"h\0" + struct.pack(">I", 1), db=db["refs"]),
        "to object 'nothing', which is not there",
    ),
    "a holder of nothing": (
        lambda t, db: t.put(b"nobody", b"a", db=db["held"]),
        "'nobody'.*has no reference",
    ),
    "a holder in no index": (lambda t, db: t.delete(b"h", b"a", db=db["held"]), "in no index"),
    "a damaged holder": (
        lambda t, db: t.put(b"h", b"x", db=db["silent"]),
        "for a time that is none",
    ),
    "a file in no index": (
        lambda t, db: t.put(first(t, db["blobs"])[0], b"a", db=db["blobs"]),
        "not in the index of files",
    ),
    "a file of nothing": (
        lambda t, db: t.put(bytes(16), b"a", db=db["blobs"]),
        "which has another",
    ),
    "no expiry": (
        lambda t, db: t.delete(first(t, db["expiry"])[0], db=db["expiry"]),
        "time to live that is in no index",
    ),
    "an expiry of nothing": (
        lambda t, db: t.put(struct.pack(">d", 5e9) + b"a", b"", db=db["expiry"]),
        "is not the object's",
    ),
    "no order of deletion": (
        lambda t, db: t.delete(first(t, db["deletions"])[0], db=db["deletions"]),
        "is in no order",
    ),
    "no deletion": (
        lambda t, db: t.delete(b"gone", db=db["deleted"]),
        "not by itself",
    ),
    "there and deleted": (
        lambda t, db: t.put(b"b", t.get(b"gone", db=db["deleted"]), db=db["deleted"]),
        "there and deleted",
    ),
}


@pytest.mark.parametrize("name", HARMS)
async def test_what_is_wrong_is_found_and_repaired(tmp_path: Path, name: str) -> None:
    harm, said = HARMS[name]
    await full(tmp_path)
    harm_objects(tmp_path, harm)
    async with objects(tmp_path) as store:
        report = await checked(store)
        told = [f"{problem.where} {problem.what}" for problem in report.problems]
        assert told
        assert not report.sound
        assert not any(problem.repaired or problem.lost for problem in report.problems)
        assert any(re.search(said, line) for line in told), told
        repaired = await checked(store, repair=True)
        assert repaired.sound
        assert len(repaired.problems) >= len(report.problems)
        assert (await checked(store)).problems == ()
        await store.put("new", b"")
    async with objects(tmp_path) as store:
        assert (await checked(store)).problems == ()
        stats = {stat.key: stat for stat in (await store.list()).objects}
        assert sorted(stats) == ["a", "b", "c", "expires", "large", "new"]
        assert (stats["a"].refs, (await store.get("large"))[1]) == (4, LARGE)


async def test_what_is_lost_is_said_to_be_and_removed(tmp_path: Path) -> None:
    await full(tmp_path)

    def flip(txn: Any, db: dict[str, Any]) -> None:
        for key in (b"a", b"b"):
            raw = bytearray(txn.get(key, db=db["objects"]))
            raw[-1 if key == b"a" else 3] ^= 16
            txn.put(key, bytes(raw), db=db["objects"])

    harm_objects(tmp_path, flip)
    (blob,) = (make_context(tmp_path).state_dir / "objects" / "blobs").iterdir()
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    async with objects(tmp_path) as store:
        for key in ("a", "b"):
            with pytest.raises(StoreCorruptError, match=f"'{key}' is damaged.*fsck"):
                await store.get(key)
        with pytest.raises(StoreCorruptError, match="'a' is damaged"):
            store.get_nowait("a")
        assert store.get_nowait("b") == b"b", "what is wrong is not the value"
        with pytest.raises(StoreCorruptError, match="'b' is damaged"):
            await store.list()
        report = await checked(store)
        lost = [problem for problem in report.problems if problem.lost]
        assert [p.where for p in lost] == ["object 'a'", "object 'b'", "object 'large'"]
        assert "hash differs" in lost[2].what
        async with store.watch() as watch:
            assert (await checked(store, repair=True)).sound
            changes = await watch.receive()
        assert [(c.key, c.now) for c in changes.changes] == [
            ("a", None),
            ("b", None),
            ("large", None),
        ]
        assert (await checked(store)).problems == ()
        assert list((make_context(tmp_path).state_dir / "objects" / "blobs").iterdir()) == []
        assert [stat.key for stat in (await store.list()).objects] == ["c", "expires"]
        with pytest.raises(ObjectNotFoundError):
            await store.get("a")
        assert (await store.put("a", b"")).version > 1, "no version is there twice"
        usage = await store.usage()
        assert (usage.objects, usage.bytes) == (3, 1)


async def test_files_that_nobody_needs(tmp_path: Path) -> None:
    """Those that are being written, or shown, are none of them."""
    async with objects(tmp_path) as store:
        blobs = make_context(tmp_path).state_dir / "objects" / "blobs"
        await store.put("k", LARGE)
        async with store.create("new") as writer, store.open("k") as view:
            for _ in range(3):
                await writer.write(bytes(1_000_000))
            await store.put("k", LARGE[1:])
            (blobs / ("0" * 32)).write_bytes(b"left")
            (blobs / "README").write_bytes(b"somebody's own")
            report = await checked(store)
            assert [problem.where for problem in report.problems] == [
                "the file " + "0" * 32,
                f"the file {blobs / 'README'}",
            ]
            assert len(list(blobs.iterdir())) == 5
            left, foreign = (await checked(store, repair=True)).problems
            assert (left.repaired, foreign.repaired) == (True, False), "it is not ours to remove"
            assert len(list(blobs.iterdir())) == 4
            (blobs / "README").unlink()
            async with store.open("k", version=1) as again:
                assert again.data == view.data == LARGE
            await writer.commit()
        assert len(list(blobs.iterdir())) == 2
        assert (await checked(store)).problems == ()


async def test_a_file_that_is_being_removed_is_no_stray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one takes the disk a while."""
    chores: list[Callable[[], None]] = []
    async with objects(tmp_path) as store:
        await store.put("k", bytes(17 << 20), hashed=False)
        with monkeypatch.context() as patched:
            patched.setattr(store.blobs, "_later", chores.append)
            await store.put("k", b"small")
            assert len(chores) == 1
            for repair in (False, True):
                assert (await store.check(repair=repair)).problems == ()
        chores[0]()
        assert store.blobs.names() == []
        assert (await store.check()).problems == ()


async def test_a_check_finds_what_a_crash_has_left(tmp_path: Path) -> None:
    """A store that is opened to be checked sweeps nothing, and collects nothing."""
    context = make_context(tmp_path)
    checking = attrs.evolve(context, checking=True)
    async with objects(tmp_path):
        pass
    blobs = context.state_dir / "objects" / "blobs"
    (blobs / ("0" * 32)).write_bytes(b"left")
    async with open_lmdb_objects(checking, LmdbObjectsConfig()) as store:
        await store.put("k", b"1", ttl=0.01)
        await trio.sleep(0.2)
        report = await checked(store)
        assert [problem.where for problem in report.problems] == ["the file " + "0" * 32]
        assert (await store.usage()).objects == 1
        assert (await checked(store, repair=True)).sound
        assert (await checked(store)).problems == ()


METADATA_HARMS: dict[str, tuple[Harm, str]] = {
    "used": (lambda t, db: t.put(b"used", b"7", db=db["meta"]), "number 'used'"),
    "revision": (lambda t, db: t.put(b"revision", b"1", db=db["meta"]), "number 'revision'"),
    "leases": (lambda t, db: t.put(b"leases", b"0", db=db["meta"]), "number 'leases'"),
    "not leased": (
        lambda t, db: t.delete(struct.pack(">Q", 1), b"l", db=db["leased"]),
        "not among the keys of its lease 1",
    ),
    "leased": (
        lambda t, db: t.put(struct.pack(">Q", 1), b"k", db=db["leased"]),
        "is not the key's",
    ),
    "no past": (lambda t, db: t.delete(b"k", db=db["past"]), "is in no index"),
    "a past of nothing": (
        lambda t, db: t.put(b"k", struct.pack(">QI", 99, 0), db=db["past"]),
        "leads to a change that is not there",
    ),
}


@pytest.mark.parametrize("name", METADATA_HARMS)
async def test_what_is_wrong_with_metadata(tmp_path: Path, name: str) -> None:
    harm, said = METADATA_HARMS[name]
    async with metadata(tmp_path) as store:
        lease = await store.grant_lease(1000.0)
        await store.put(b"k", b"1")
        await store.put(b"l", b"1", lease=lease.id)
        await store.put(b"k", b"2")
        assert (await checked(store)).problems == ()
        revision = (await store.range()).revision
        await store.compact(revision - 1)
        assert (await checked(store)).problems == ()
    where = make_context(tmp_path).state_dir / "metadata"
    with lmdb.open(str(where), max_dbs=20, map_size=1 << 30) as env:
        databases = {
            name: env.open_db(name.encode(), dupsort=name in ("past", "leased"))
            for name in ("meta", "keys", "log", "past", "leases", "leased")
        }
        with env.begin(write=True) as txn:
            harm(txn, databases)
    async with metadata(tmp_path) as store:
        report = await checked(store)
        assert any(said in f"{p.where} {p.what}" for p in report.problems), report
        assert (await checked(store, repair=True)).sound
        assert (await checked(store)).problems == ()
        assert [(i.key, i.value) for i in (await store.range()).items] == [
            (b"k", b"2"),
            (b"l", b"1"),
        ]
        await store.revoke_lease(lease.id)
        assert [i.key for i in (await store.range()).items] == [b"k"]
        assert (await checked(store)).problems == ()


async def test_a_damaged_metadata_record(tmp_path: Path) -> None:
    async with metadata(tmp_path) as store:
        await store.put(b"k", b"value")
        await store.put(b"other", b"value")
    where = make_context(tmp_path).state_dir / "metadata"
    with lmdb.open(str(where), max_dbs=20, map_size=1 << 30) as env:
        keys = env.open_db(b"keys")
        with env.begin(write=True) as txn:
            raw = bytearray(txn.get(b"k", db=keys))
            raw[40 - 6] ^= 1
            txn.put(b"k", bytes(raw), db=keys)
    async with metadata(tmp_path) as store:
        with pytest.raises(StoreCorruptError, match="'k' is damaged"):
            await store.get(b"k")
        (lost,) = [p for p in (await checked(store)).problems if p.lost]
        assert lost.where == "metadata key b'k'"
        assert (await checked(store, repair=True)).sound
        assert (await store.get(b"k")) is None
        assert (await checked(store)).problems == ()


@pytest.mark.parametrize("what", ["cancelled", "closed"])
async def test_a_check_ends_when_nobody_waits_or_the_store_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It is in its thread, and leaves the map before that is gone."""
    monkeypatch.setattr(_checking, "_OFTEN", 1)
    begun, go_on = trio.Event(), threading.Event()
    look = _object_check.ObjectCheck.look

    def late(check: _object_check.ObjectCheck) -> None:
        trio.from_thread.run_sync(begun.set)
        go_on.wait(60)
        look(check)

    monkeypatch.setattr(_object_check.ObjectCheck, "look", late)
    stop = _environment.Environment.stop

    def stop_and_go_on(environment: _environment.Environment) -> None:
        stop(environment)
        go_on.set()

    monkeypatch.setattr(_environment.Environment, "stop", stop_and_go_on)
    told: list[str] = []

    async def check(store: ObjectStore, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await checked(store)
            except StoreError as exc:
                told.append(exc.code)

    async with trio.open_nursery() as nursery, objects(tmp_path) as store:
        await store.put("k", LARGE)
        scope = trio.CancelScope()
        nursery.start_soon(check, store, scope)
        await begun.wait()
        if what == "cancelled":
            scope.cancel()
            go_on.set()
    assert scope.cancelled_caught == (what == "cancelled")
    assert told == ([] if what == "cancelled" else ["unavailable"])
