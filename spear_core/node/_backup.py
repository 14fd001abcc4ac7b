"""A backup of a node, running or not: one directory that is whole when it has its name.

::

    manifest.json         what it is, and every file with its checksum
    node.id, node.store   the node's identity, and which metadata store it uses
    stores/metadata/      tasks, idempotency keys, names of artifacts
    stores/objects/       objects
    artifacts/            code, and names of artifacts where they are files
    logs/                 if asked for

**What fits together.** Whatever a record names is written before the record, and deleted after it.
So the records are copied first, while nothing is deleted (:class:`DeletionHold`), and then
everything else: all that the copied records name is in the backup. What it has beyond that, objects
of tasks that came later, is swept when a node starts on it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio
from trio.from_thread import check_cancelled

from spear_core import __version__
from spear_core.api import BackupReport, MetadataStore, ObjectStore, StoreMaintenance
from spear_core.errors import InvalidRequestError, SpearError
from spear_core.node._backup_files import (
    copy_tree,
    disk_trouble,
    remove_tree,
    sync_directories,
)
from spear_core.node._backup_manifest import (
    MANIFEST,
    BackupFile,
    CopiedStore,
    Manifest,
    encode_manifest,
    list_files,
)
from spear_core.node._services import Services
from spear_core.node._stores import lasts
from spear_core.node.paths import StatePaths
from spear_core.plugins import Owned
from spear_core.stores import sync

__all__ = [
    "METADATA",
    "OBJECTS",
    "BackupSource",
    "NamedStore",
    "Telling",
    "open_stores",
    "write_backup",
]

T = TypeVar("T")

METADATA = "stores/metadata"
OBJECTS = "stores/objects"
_TIDYING_S = 60.0
_TELL_BYTES = 64 << 20

Telling = Callable[[str], None]
"""Told in a few words what is being done; from any thread."""


@attrs.frozen
class NamedStore:
    """A store that can be copied, and what it is called."""

    name: str
    store: StoreMaintenance


@attrs.frozen(kw_only=True)
class BackupSource:
    """What a backup is made of."""

    paths: StatePaths
    node_id: str
    metadata: NamedStore | None
    objects: NamedStore | None
    hold: Callable[[], AbstractContextManager[None]]
    """Nothing that a record names, or has named, is deleted while it lasts."""


async def write_backup(
    source: BackupSource, directory: Path, *, logs: bool, tell: Telling
) -> BackupReport:
    """Write a backup to a new directory.

    **Raises** :exc:`~spear_core.errors.InvalidRequestError` when it exists or cannot be made,
    :exc:`~spear_core.errors.StoreFullError` when its disk is full. **Cancellation**: nothing is
    left of it.
    """
    _check_place(source.paths, directory)
    created_at = time.time()
    async with _growing(directory) as partial:
        with disk_trouble(directory):
            (partial / "stores").mkdir(mode=0o700)
            with source.hold():
                tell("copying the records of tasks and artifacts")
                metadata = await _copy_store(source.metadata, partial / METADATA)
                tell("copying objects")
                objects = await _copy_store(source.objects, partial / OBJECTS)
                tell("copying artifacts")
                await _in_thread(_copy_artifacts, source.paths.artifacts, partial / "artifacts")
            (partial / "node.id").write_text(f"{source.node_id}\n", "ascii")
            if metadata is not None:  # else a node would miss there what is not in the backup
                with suppress(FileNotFoundError):
                    (partial / "node.store").write_bytes(source.paths.store.read_bytes())
            if logs:
                tell("copying logs")
                await _in_thread(copy_tree, source.paths.logs, partial / "logs")
            files = await _in_thread(_hash, partial, tell)
            manifest = Manifest(
                spear=__version__,
                created_at=created_at,
                node_id=source.node_id,
                metadata=metadata,
                objects=objects,
                files=tuple(files),
            )
            tell("waiting for the disk")
            await _in_thread(_seal, partial, manifest)
    return _report(directory, manifest)


def _report(directory: Path, manifest: Manifest) -> BackupReport:
    code = {file.path.split("/")[2] for file in manifest.files if _is_code(file)}
    return BackupReport(
        path=str(directory),
        created_at=manifest.created_at,
        node_id=manifest.node_id,
        files=len(manifest.files),
        bytes=manifest.bytes,
        records=None if manifest.metadata is None else manifest.metadata.records,
        objects=None if manifest.objects is None else manifest.objects.records,
        artifacts=len(code),
    )


def _is_code(file: BackupFile) -> bool:
    return file.path.startswith("artifacts/code/")


def _check_place(paths: StatePaths, directory: Path) -> None:
    if os.path.lexists(directory):
        raise InvalidRequestError(f"{directory} exists already; a backup gets a name of its own")
    parent = directory.parent
    if not parent.is_dir():
        raise InvalidRequestError(f"there is no directory {parent} to put the backup in")
    if parent.resolve().is_relative_to(paths.root.resolve()):
        raise InvalidRequestError(
            f"{directory} lies within the state directory {paths.root}; a backup belongs outside, "
            "and best on another disk"
        )


@asynccontextmanager
async def _growing(directory: Path) -> AsyncIterator[Path]:
    """A directory beside this one that gets its name when the block ends, and goes when it
    fails."""
    with disk_trouble(directory):
        name = tempfile.mkdtemp(
            prefix=f"{directory.name}.", suffix=".partial", dir=directory.parent
        )
    partial = Path(name)
    try:
        yield partial
        with disk_trouble(directory):
            await trio.to_thread.run_sync(_name, partial, directory)
    except BaseException:
        with trio.move_on_after(_TIDYING_S, shield=True):
            await trio.to_thread.run_sync(remove_tree, partial)
        raise


def _name(partial: Path, directory: Path) -> None:
    if os.path.lexists(directory):
        raise InvalidRequestError(f"{directory} exists already; somebody else has made it")
    partial.rename(directory)
    sync(directory.parent)


async def open_stores(services: Services) -> tuple[NamedStore | None, NamedStore | None]:
    """The metadata store and the object store, opened for a backup; ``None`` for one that does not
    last.

    :raises SpearError: one lasts and cannot be copied, or cannot be opened.
    """
    metadata = await _open(services.chosen_metadata_store(), services.metadata_store)
    return metadata, await _open(services.chosen_object_store(), services.object_store)


async def _open(
    owned: Owned[Any], open_: Callable[[], Awaitable[MetadataStore | ObjectStore]]
) -> NamedStore | None:
    if not lasts(owned.spec):
        return None
    store = await open_()
    if not isinstance(store, StoreMaintenance):
        raise SpearError(
            f"the store {owned.spec.name!r} of {owned.plugin_name} makes no backups; stop the "
            "node, and copy its state directory",
            code="unimplemented",
        )
    return NamedStore(owned.spec.name, store)


async def _copy_store(store: NamedStore | None, directory: Path) -> CopiedStore | None:
    if store is None:
        return None
    copied = await store.store.backup(directory)
    return CopiedStore(store=store.name, revision=copied.revision, records=copied.records)


def _copy_artifacts(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    copy_tree(source / "names", target / "names")
    copy_tree(source / "code", target / "code", link=True)


def _hash(partial: Path, tell: Telling) -> list[BackupFile]:
    done, told = 0, -_TELL_BYTES

    def moved(count: int) -> None:
        nonlocal done, told
        check_cancelled()
        done += count
        if done - told >= _TELL_BYTES:
            told = done
            tell(f"computing checksums: {done >> 20} MiB")

    return list(list_files(partial, moved))


def _seal(partial: Path, manifest: Manifest) -> None:
    path = partial / MANIFEST
    with path.open("xb") as file:
        file.write(encode_manifest(manifest))
        file.flush()
        os.fsync(file.fileno())
    for name in ("node.id", "node.store", MANIFEST):
        with suppress(FileNotFoundError):
            (partial / name).chmod(0o600)  # it stays private where somebody copies it
            sync(partial / name)
    sync_directories(partial)


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    return await trio.to_thread.run_sync(work, *args)
