"""Putting a backup where a node will start.

Everything is made in ``restoring/`` of the state directory, which is locked meanwhile, and then
moved to its place. A node does not start as long as that directory is there: a restore that was
killed is begun anew, and never half believed.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio
from trio.from_thread import check_cancelled

from spear_core.api import MetadataStoreSpec, ObjectStoreSpec
from spear_core.config import NodeSettings
from spear_core.errors import ConfigError, InvalidRequestError
from spear_core.node._backup import METADATA, OBJECTS, Telling
from spear_core.node._backup_archive import read_archive_manifest, unpack_archive
from spear_core.node._backup_files import (
    disk_trouble,
    remove_tree,
    sync_directories,
    take_file,
)
from spear_core.node._backup_manifest import CopiedStore, Manifest, check_files, read_manifest
from spear_core.node._services import Services
from spear_core.node._state import lock_state
from spear_core.node._stopped import open_services
from spear_core.node._stores import lasts
from spear_core.node.paths import StatePaths
from spear_core.plugins import Owned, Plugins
from spear_core.stores import sync

__all__ = ["ASIDE", "RestoreReport", "restore_backup"]

T = TypeVar("T")
ASIDE = "before-restore-"
"""How a directory begins that has what was there before."""
_TIDYING_S = 60.0
_TELL_BYTES = 64 << 20
_CODE = "artifacts/code/"
AnyStoreSpec = MetadataStoreSpec[Any] | ObjectStoreSpec[Any]


@attrs.frozen(kw_only=True)
class RestoreReport:
    """What was restored."""

    state_dir: str
    node_id: str
    created_at: float
    """When the backup was made, in seconds since the Unix epoch."""
    files: int
    bytes: int
    records: int | None
    """As in :class:`~spear_core.api.BackupReport`."""
    objects: int | None
    moved_aside: str | None
    """Where that is now which was there before."""


async def restore_backup(
    settings: NodeSettings,
    plugins: Plugins,
    paths: StatePaths,
    backup: Path,
    *,
    force: bool,
    tell: Telling,
) -> RestoreReport:
    """Put a backup into a state directory that is empty.

    :param force: what is there is moved aside.

    **Raises**, and nothing has changed then: :exc:`~spear_core.errors.StoreFormatError` when it is
    no backup, or one of a newer SPEAR; :exc:`~spear_core.errors.StoreCorruptError` when it is
    damaged; :exc:`~spear_core.errors.StoreFullError`;
    :exc:`~spear_core.errors.NodeAlreadyRunningError`; :exc:`~spear_core.errors.ConfigError` when
    the directory is not empty, or the configuration has other stores. **Cancellation**: likewise.
    """
    manifest = await _in_thread(_manifest_of, backup)
    async with open_services(
        settings, plugins, StatePaths(paths.restoring / "new"), node_id=manifest.node_id
    ) as services:
        stores = _stores(services, manifest)
        with lock_state(paths):
            aside = _check_empty(paths, force=force)
            with disk_trouble(paths.root):
                async with _staging(paths) as staging:
                    source = await _in_thread(_source, backup, paths, manifest, tell)
                    await _in_thread(_fill, source, staging, manifest, tell)
                    for owned, part in stores:
                        tell(f"restoring {part}")
                        await _restore_store(owned, services, source / part)
                    tell("waiting for the disk")
                    await _in_thread(_finish_staging, paths, staging, manifest)
                with trio.CancelScope(shield=True):  # a few renames: all of them, or none
                    await trio.to_thread.run_sync(_put_in_place, paths, staging, aside)
    return RestoreReport(
        state_dir=str(paths.root),
        node_id=manifest.node_id,
        created_at=manifest.created_at,
        files=len(manifest.files),
        bytes=manifest.bytes,
        records=None if manifest.metadata is None else manifest.metadata.records,
        objects=None if manifest.objects is None else manifest.objects.records,
        moved_aside=None if aside is None else str(aside),
    )


def _manifest_of(backup: Path) -> Manifest:
    if not backup.exists():
        raise InvalidRequestError(f"there is no backup {backup}")
    return read_archive_manifest(backup) if backup.is_file() else read_manifest(backup)


def _stores(services: Services, manifest: Manifest) -> list[tuple[Owned[Any], str]]:
    """Who restores which part. :raises ConfigError: a store of the backup is not the node's."""
    found: list[tuple[Owned[Any], str]] = []
    chosen: list[tuple[str, str, CopiedStore | None, Owned[Any]]] = [
        ("metadata", METADATA, manifest.metadata, services.chosen_metadata_store()),
        ("objects", OBJECTS, manifest.objects, services.chosen_object_store()),
    ]
    for setting, part, copied, owned in chosen:
        if copied is None:
            continue
        if owned.spec.name != copied.store or not lasts(owned.spec) or owned.spec.restore is None:
            raise ConfigError(
                f"the backup has the {setting} of a store {copied.store!r}, and here it is "
                f"{owned.spec.name!r}; install the plugin that provides {copied.store!r} "
                f"(spear-store-lmdb provides 'lmdb'), or set stores.{setting}"
            )
        found.append((owned, part))
    return found


def _check_empty(paths: StatePaths, *, force: bool) -> Path | None:
    """Where what is there goes. :raises ConfigError: there is something."""
    if not _there(paths):
        return None
    if not force:
        raise ConfigError(
            f"the state directory {paths.root} is not empty; choose another with --state-dir, or "
            f"let --force move what is there aside, to {ASIDE}… in the same directory"
        )
    if mounted := [str(path) for path in _there(paths) if path.is_mount()]:
        raise ConfigError(
            f"{', '.join(mounted)} cannot be moved aside, for something is mounted there; unmount "
            "or empty it first"
        )
    moment = time.strftime("%Y%m%d-%H%M%S")
    names = (f"{ASIDE}{moment}{f'-{n}' if n else ''}" for n in range(1000))
    return next(path for name in names if not (path := paths.root / name).exists())


def _there(paths: StatePaths) -> list[Path]:
    kept = {paths.lock.name, paths.restoring.name, "lost+found"}
    return [
        path
        for path in sorted(paths.root.iterdir())
        if path.name not in kept and not path.name.startswith(ASIDE) and not _is_empty(path)
    ]


def _is_empty(path: Path) -> bool:
    """Whether it is a directory with nothing in it, such as a volume that is mounted for logs."""
    try:
        return not path.is_symlink() and not set(os.listdir(path)) - {"lost+found"}
    except OSError:
        return False


@asynccontextmanager
async def _staging(paths: StatePaths) -> AsyncIterator[Path]:
    """An empty directory within ``restoring/``, which is gone afterwards."""
    await trio.to_thread.run_sync(remove_tree, paths.restoring)
    staging = paths.restoring / "new"
    staging.mkdir(mode=0o700, parents=True)
    paths.restoring.chmod(0o700)
    try:
        yield staging
    except BaseException:
        with trio.move_on_after(_TIDYING_S, shield=True):
            await trio.to_thread.run_sync(remove_tree, paths.restoring)
        raise


def _source(backup: Path, paths: StatePaths, manifest: Manifest, tell: Telling) -> Path:
    """The backup as a directory, every file of which was compared with its checksum."""
    source = backup
    if backup.is_file():
        source = paths.restoring / "backup"
        unpack_archive(backup, source, manifest, _counting(tell, "unpacking"))
    check_files(source, manifest, _counting(tell, "comparing checksums"))
    return source


def _counting(tell: Telling, what: str) -> Callable[[int], None]:
    done, told = 0, -_TELL_BYTES

    def moved(count: int) -> None:
        nonlocal done, told
        check_cancelled()
        done += count
        if done - told >= _TELL_BYTES:
            told = done
            tell(f"{what}: {done >> 20} MiB")

    return moved


def _fill(source: Path, staging: Path, manifest: Manifest, tell: Telling) -> None:
    """All but the stores; only what the manifest names, with its own modes."""
    tell("restoring artifacts")
    for file in manifest.files:
        if file.path.startswith("stores/"):
            continue
        target = staging / file.path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        take_file(source / file.path, target, link=False)
        mode = 0o400 if file.path.startswith(_CODE) else 0o600
        target.chmod(mode | (0o100 if file.executable else 0))


async def _restore_store(owned: Owned[Any], services: Services, source: Path) -> None:
    context = services.context(owned.plugin_name)
    context.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    await owned.spec.restore(context, source)


def _finish_staging(paths: StatePaths, staging: Path, manifest: Manifest) -> None:
    remove_tree(paths.restoring / "backup")
    sync_directories(staging)
    for directory, _, _ in os.walk(staging):
        Path(directory).chmod(0o700)
    for bundle in _bundles(manifest):
        for directory, _, _ in os.walk(staging / _CODE / bundle, topdown=False):
            Path(directory).chmod(0o500)  # nobody adds files to a bundle


def _bundles(manifest: Manifest) -> set[str]:
    """The code that is more than one file named by its own checksum."""
    found = set()
    for file in manifest.files:
        if file.path.startswith(_CODE):
            digest, _, rest = file.path.removeprefix(_CODE).partition("/")
            if file.sha256 != digest or "/" in rest:
                found.add(digest)
    return found


def _put_in_place(paths: StatePaths, staging: Path, aside: Path | None) -> None:
    """When something cannot be moved, all is moved back; should that fail as well, ``restoring/``
    stays, and no node starts."""
    moved: list[tuple[Path, Path]] = []

    def move(path: Path, target: Path) -> None:
        path.rename(target)
        moved.append((path, target))

    try:
        if aside is not None:
            aside.mkdir(mode=0o700)
            for path in _there(paths):
                move(path, aside / path.name)
            sync(aside)
        for path in sorted(staging.iterdir()):
            move(path, paths.root / path.name)
        sync(paths.root)
    except OSError:
        for path, target in reversed(moved):
            target.rename(path)
        if aside is not None:
            with suppress(FileNotFoundError):
                aside.rmdir()
        sync(paths.root)
        remove_tree(paths.restoring)
        raise
    staging.rmdir()
    paths.restoring.rmdir()
    sync(paths.root)


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    return await trio.to_thread.run_sync(work, *args)
