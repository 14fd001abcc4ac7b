"""Where the records of artifacts' names are: in the metadata store, else in files.

In the store::

    artifacts/<name>                    the next number, the latest (:class:`NameHead`)
    versions/<name>/<number>            each version

Without a store that lasts they are files, one a name, and survive a restart just as well. A store
that comes later takes them over, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import msgspec
import trio

from spear_core.api import DeleteKey, KeyValue, MetadataChange, MetadataStore, PutKey
from spear_core.errors import ArtifactCorruptError
from spear_core.node._artifact_records import (
    FORMAT,
    NameRecord,
    VersionRecord,
    decode_name,
    encode_name,
)
from spear_core.node._code import cannot_store
from spear_core.node._state import write_atomically
from spear_core.stores import MAX_CHANGES

__all__ = ["FileNames", "NameRecords", "StoreNames", "open_store_names"]

NAMES = b"artifacts/"
VERSIONS = b"versions/"
_TAKEN = ".taken-over"
"""Added to the name of a file whose content is in the store now."""


class NameRecords(ABC):
    """The record of every name."""

    @abstractmethod
    def load(self) -> tuple[Mapping[str, NameRecord], Mapping[str, str]]:
        """Every name, and for those that cannot be read, what to tell whoever asks."""

    @abstractmethod
    async def write(self, name: str, record: NameRecord) -> None:
        """Replace a name's record; on disk when this returns.

        **Raises** :exc:`~spear_core.errors.ArtifactError` or
        :exc:`~spear_core.errors.StoreError`; nothing has changed then. **Cancellation**: likewise.
        """


class FileNames(NameRecords):
    """A file for each name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> tuple[Mapping[str, NameRecord], Mapping[str, str]]:
        names, problems = {}, {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                names[path.stem] = decode_name(path.read_bytes())
            except (OSError, ArtifactCorruptError) as error:
                why = f"cannot be read ({error})" if isinstance(error, OSError) else str(error)
                problems[path.stem] = (
                    f"artifact {path.stem!r} cannot be used: {path} {why}; "
                    "restore the file, or move it away and deploy again"
                )
        return names, problems

    async def write(self, name: str, record: NameRecord) -> None:
        path = self._directory / f"{name}.json"
        try:
            await trio.to_thread.run_sync(write_atomically, path, encode_name(record))
        except OSError as error:
            raise cannot_store(name, error) from error

    def taken_over(self, name: str) -> None:
        """A store has this name now."""
        path = self._directory / f"{name}.json"
        path.rename(path.with_name(path.name + _TAKEN))


@attrs.frozen(kw_only=True)
class NameHead:
    """What is said of a name beside its versions."""

    format: int
    next_version: int
    latest: int | None


class StoreNames(NameRecords):
    """Keys in the metadata store; made by :func:`open_store_names`."""

    def __init__(
        self, store: MetadataStore, names: Mapping[str, NameRecord], problems: Mapping[str, str]
    ) -> None:
        self._store = store
        self._names = dict(names)
        self._problems = dict(problems)

    def load(self) -> tuple[Mapping[str, NameRecord], Mapping[str, str]]:
        return self._names, self._problems

    def add_problems(self, problems: Mapping[str, str]) -> None:
        """More names that cannot be read."""
        self._problems.update(problems)

    async def write(self, name: str, record: NameRecord) -> None:
        old = self._names.get(name, NameRecord())
        had = {each.version: each for each in old.versions}
        has = {each.version: each for each in record.versions}
        changes: list[MetadataChange] = [
            PutKey(key=_version_key(name, number), value=msgspec.msgpack.encode(version))
            for number, version in has.items()
            if had.get(number) != version
        ]
        changes += [
            DeleteKey(key=_version_key(name, number)) for number in had if number not in has
        ]
        while len(changes) >= MAX_CHANGES:  # only the first time: without a head, they are nothing
            await self._store.transact(changes[: MAX_CHANGES - 1])
            del changes[: MAX_CHANGES - 1]
        head = NameHead(format=FORMAT, next_version=record.next_version, latest=record.latest)
        changes.append(PutKey(key=NAMES + name.encode(), value=msgspec.msgpack.encode(head)))
        await self._store.transact(changes)
        self._names[name] = record


def _version_key(name: str, number: int) -> bytes:
    return VERSIONS + f"{name}/{number:09d}".encode()


async def open_store_names(
    store: MetadataStore, files: FileNames, *, warn: Callable[[str], None]
) -> StoreNames:
    """The names in a store, and those that files had until now.

    :raises StoreError: the store cannot be read or written.
    """
    versions: dict[str, list[KeyValue]] = {}
    for item in await _all(store, VERSIONS):
        name, _, _ = item.key[len(VERSIONS) :].decode().rpartition("/")
        versions.setdefault(name, []).append(item)
    names, problems = {}, {}
    for item in await _all(store, NAMES):
        name = item.key[len(NAMES) :].decode()
        try:
            names[name] = _decode(item, versions.get(name, []))
        except ArtifactCorruptError as error:
            problems[name] = f"artifact {name!r} cannot be used: its record {error}"
    there = StoreNames(store, names, problems)
    await _take_over(there, files, warn)
    return there


async def _all(store: MetadataStore, prefix: bytes) -> list[KeyValue]:
    page = await store.range(prefix)
    items = list(page.items)
    while page.next_key is not None:
        page = await store.range(prefix, after=page.next_key, revision=page.revision)
        items += page.items
    return items


def _decode(head: KeyValue, versions: list[KeyValue]) -> NameRecord:
    try:
        found = msgspec.msgpack.decode(head.value, type=NameHead)
        if found.format > FORMAT:
            raise ArtifactCorruptError(
                f"was written by a newer version of SPEAR (format {found.format}, known here: "
                f"{FORMAT})"
            )
        return NameRecord(
            next_version=found.next_version,
            versions=tuple(
                msgspec.msgpack.decode(each.value, type=VersionRecord) for each in versions
            ),
            latest=found.latest,
            format=found.format,
        )
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ArtifactCorruptError(f"cannot be read ({error})") from error


async def _take_over(there: StoreNames, files: FileNames, warn: Callable[[str], None]) -> None:
    """Write into the store what files have; a crash in between lets it be done again."""
    names, _ = there.load()
    found, unreadable = files.load()
    for name, record in found.items():
        current = attrs.evolve(record, format=FORMAT)
        if name not in names:
            await there.write(name, current)
        elif attrs.evolve(names[name], format=FORMAT) != current:
            warn(
                f"artifact {name!r}: its record in a file differs from the one in the store, which "
                "holds; the file is left as it was"
            )
            continue
        files.taken_over(name)
    there.add_problems({k: v for k, v in unreadable.items() if k not in names})
