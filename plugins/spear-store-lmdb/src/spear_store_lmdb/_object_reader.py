"""Finding the records of objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import lmdb

from spear_core.errors import ObjectNotFoundError
from spear_core.stores import Versions, check_object_key, version_gone

from ._environment import Environment
from ._records import Record, blob_of, unpack
from ._transaction import Transaction, ViewCursor

__all__ = ["ObjectReader"]


_MOST_KNOWN = 256
_MOST_BYTES = 4 << 20
"""Records that are kept as they were read last, and their bytes."""


class ObjectReader:
    """Reads records of the last commit, and those of old versions that somebody keeps."""

    def __init__(self, environment: Environment, versions: Versions[bytes]) -> None:
        self._environment = environment
        self._objects = environment["objects"]
        self._versions = versions
        self._known: dict[str, tuple[Record, bytes]] = {}
        self._known_bytes = 0
        """Of all that has come into it, also where something else has its place now."""

    def revision(self, txn: Transaction) -> int:
        """The last one of that transaction."""
        return int(txn.get(b"revision", b"0", db=self._environment["meta"]))

    def unknown(self, names: Sequence[str], revision: int) -> list[str] | None:
        """The files among these that no record has, and no version that somebody keeps; ``None``
        when the last commit is not that revision."""
        with self._environment.reading() as txn:
            if self.revision(txn) != revision:
                return None
            kept = {blob_of(raw) for raw in self._versions.kept()}
            known = self._environment["blobs"]
            return [
                name
                for name in names
                if txn.get(bytes.fromhex(name), db=known) is None and name not in kept
            ]

    def raw(self, key: str) -> bytes:
        """A record as it lies there.

        **Raises** :exc:`~spear_core.errors.ObjectNotFoundError`.
        """
        try:
            with self._environment.reading() as txn:
                raw = txn.get(key.encode(), db=self._objects)
        except (UnicodeEncodeError, lmdb.BadValsizeError):
            raw = None
        except lmdb.Error as exc:
            raise self._environment.trouble(exc) from exc
        if raw is None:
            check_object_key(key)
            raise ObjectNotFoundError(f"there is no object {key!r}")
        return raw

    def read(self, key: str) -> tuple[Record, bytes]:
        """Likewise, and what it says."""
        raw = self.raw(key)
        known = self._known.get(key)
        if known is not None and known[1] == raw:  # a tenth of the time that taking it apart takes
            return known
        found = self._known[key] = unpack(key, raw), raw
        self._known_bytes += len(raw)
        if len(self._known) > _MOST_KNOWN or self._known_bytes > _MOST_BYTES:
            self._known, self._known_bytes = {}, 0
        return found

    def find(self, key: str, version: int | None) -> tuple[Record, bytes]:
        """The current version, or another that somebody keeps."""
        if version is None:
            return self.read(key)
        current = None
        with suppress(ObjectNotFoundError):
            record, raw = self.read(key)
            current = record.stat.version
            if current == version:
                return record, raw
        kept = self._versions.find(key, version)
        if kept is None:
            raise version_gone(key, version, current)
        return unpack(key, kept), kept

    @contextmanager
    def walking(
        self, prefix: str, after: str | None
    ) -> Iterator[tuple[Iterator[tuple[str, bytes, memoryview]], int]]:
        """Names, keys and records, ascending, which lie in LMDB for as long as the block; and the
        revision."""
        try:
            with self._environment.looking() as txn:
                revision = int(bytes(txn.get(b"revision", b"0", db=self._environment["meta"])))
                yield self._walk(txn.cursor(db=self._objects), prefix, after), revision
        except lmdb.Error as exc:
            raise self._environment.trouble(exc) from exc

    @staticmethod
    def _walk(
        cursor: ViewCursor, prefix: str, after: str | None
    ) -> Iterator[tuple[str, bytes, memoryview]]:
        first = prefix.encode("utf-8", "surrogatepass")
        start = first if after is None else max(first, after.encode("utf-8", "surrogatepass"))
        if not (cursor.set_range(start) if start else cursor.first()):
            return
        for view, raw in cursor:
            key = bytes(view)
            if not key.startswith(first):
                return
            if (name := key.decode()) != after:
                yield name, key, raw
