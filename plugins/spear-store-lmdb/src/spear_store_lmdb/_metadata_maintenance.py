"""Backups and checks of a metadata store."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from spear_core.api import KeyValue, StoreBackup, StoreReport
from spear_core.errors import StoreCorruptError

from ._backup import backup_directory, copied, restore_directory
from ._checking import Check
from ._environment import Environment
from ._metadata_records import NUMBER, PLACE, logged, value_of
from ._transaction import Transaction

__all__ = ["MetadataCheck", "backup_metadata", "check_metadata", "restore_metadata"]

_TTL = struct.Struct("<d")


async def backup_metadata(environment: Environment, directory: Path) -> StoreBackup:
    """See :meth:`spear_core.api.StoreMaintenance.backup`."""

    def content(folder: Path) -> StoreBackup:
        with copied(folder) as found:
            return StoreBackup(
                revision=found.number(b"revision"),
                records=found.count("keys"),
                bytes=(folder / "data.mdb").stat().st_size,
            )

    async with backup_directory(directory) as partial:
        await environment.copy(partial)
        return await trio.to_thread.run_sync(content, partial)


async def restore_metadata(backup: Path, folder: Path) -> None:
    """See ``restore`` of :class:`spear_core.api.MetadataStoreSpec`."""
    await restore_directory(backup, folder, kind="metadata", files=lambda content: [])


async def check_metadata(environment: Environment, *, repair: bool) -> StoreReport:
    """See :meth:`spear_core.api.StoreMaintenance.check`."""

    def look(txn: Transaction) -> StoreReport:
        return MetadataCheck(txn, environment.databases, environment.go_on).report()

    def put_right(txn: Transaction) -> StoreReport:
        return MetadataCheck(txn, environment.databases, lambda: None).repair()

    report = await environment.scan(look)
    if repair and report.problems:
        report = await environment.write(put_right)
    return report


class MetadataCheck(Check):
    """One check of a metadata store."""

    def __init__(
        self, txn: Transaction, databases: Mapping[str, Any], pause: Callable[[], None]
    ) -> None:
        super().__init__(txn, databases, pause)
        self._used = 0
        self._revision = 0

    def look(self) -> None:
        self._used = self._revision = 0
        self._look_at_keys()
        self._look_at_log()
        self._look_at_past()
        self._look_at_leases()
        self.check_number(b"revision", least=self._revision)
        self.check_number(b"used", exact=self._used)

    def _look_at_keys(self) -> None:
        for key, raw in self.txn.cursor(db=self.databases["keys"]):
            self.go_on()
            self.records += 1
            try:
                item = value_of(key, raw)
            except (StoreCorruptError, struct.error):
                self.found(
                    f"metadata key {key!r}",
                    "its record is damaged: the checksum differs",
                    lambda key=key: self.delete("keys", key),  # type: ignore[misc]
                    lost=True,
                )
                continue
            assert item is not None, "a record is never empty"
            self.bytes += len(item.value)
            self._used += len(key) + len(item.value)
            self._revision = max(self._revision, item.mod_revision)
            if item.lease and not self._leased(item):
                self.found(
                    f"metadata key {key!r}",
                    f"is not among the keys of its lease {item.lease}",
                    lambda item=item: self.put("leased", NUMBER.pack(item.lease), item.key),  # type: ignore[misc]
                )

    def _leased(self, item: KeyValue) -> bool:
        cursor = self.txn.cursor(db=self.databases["leased"])
        name = NUMBER.pack(item.lease)
        return (
            cursor.set_range_dup(name, item.key)
            and cursor.key() == name
            and cursor.value() == item.key
        )

    def _look_at_log(self) -> None:
        """Every change since the last compaction is in ``past``, and what it changed is whole."""
        compacted = self.number(b"compacted")
        for place, raw in self.txn.cursor(db=self.databases["log"]):
            self.go_on()
            revision, _ = PLACE.unpack(place)
            self._revision = max(self._revision, revision)
            try:
                key, before = logged(raw)
            except (StoreCorruptError, struct.error):
                end = 2 + int.from_bytes(raw[:2], "big")
                self.found(
                    f"the history of metadata key {raw[2:end]!r}",
                    f"before revision {revision} is damaged: the checksum differs",
                    lambda place=place, raw=raw[:end]: self.put("log", place, raw),  # type: ignore[misc]
                    lost=True,
                )
                continue
            self._used += len(key) + (len(key) + len(before.value) if before else 0)
            if revision > compacted and not self._is_past(key, place):
                self.found(
                    f"the history of metadata key {key!r}",
                    f"at revision {revision} is in no index",
                    lambda key=key, place=place: self.put("past", key, place),  # type: ignore[misc]
                )

    def _is_past(self, key: bytes, place: bytes) -> bool:
        cursor = self.txn.cursor(db=self.databases["past"])
        return cursor.set_range_dup(key, place) and cursor.key() == key and cursor.value() == place

    def _look_at_past(self) -> None:
        compacted = self.number(b"compacted")
        for key, place in self.txn.cursor(db=self.databases["past"]):
            self.go_on()
            raw = self.get("log", place)
            end = 2 + int.from_bytes(raw[:2], "big") if raw else 0
            if raw is None or raw[2:end] != key or PLACE.unpack(place)[0] <= compacted:
                self.found(
                    f"the history of metadata key {key!r}",
                    "leads to a change that is not there",
                    lambda key=key, place=place: self.delete("past", key, place),  # type: ignore[misc]
                )

    def _look_at_leases(self) -> None:
        latest = 0
        for name, ttl in self.txn.cursor(db=self.databases["leases"]):
            if len(name) != NUMBER.size or len(ttl) != _TTL.size:
                self.found(
                    f"lease {name!r}",
                    "is damaged",
                    lambda name=name: self.delete("leases", name),  # type: ignore[misc]
                )
                continue
            latest = max(latest, NUMBER.unpack(name)[0])
        self.check_number(b"leases", least=latest)
        for name, key in self.txn.cursor(db=self.databases["leased"]):
            self.go_on()
            raw = self.get("keys", key)
            try:
                item = value_of(key, raw)
            except (StoreCorruptError, struct.error):
                continue
            if item is None or NUMBER.pack(item.lease) != name:
                self.found(
                    f"a lease of metadata key {key!r}",
                    "is not the key's",
                    lambda name=name, key=key: self.delete("leased", name, key),  # type: ignore[misc]
                )
