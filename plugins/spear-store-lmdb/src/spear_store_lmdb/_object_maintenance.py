"""Backups and checks of an object store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from spear_core.api import (
    StoreBackup,
    StoreProblem,
    StoreReport,
)
from spear_core.stores import History

from ._backup import Copied, backup_directory, copied, restore_directory, take_files
from ._blobs import Blobs
from ._environment import Environment
from ._object_changes import Done
from ._object_check import ObjectCheck
from ._object_reader import ObjectReader
from ._transaction import Transaction

__all__ = [
    "backup_objects",
    "check_objects",
    "foreign",
    "orphans",
    "remove_orphans",
    "repair_objects",
    "restore_objects",
    "stray_files",
]


async def backup_objects(environment: Environment, blobs: Blobs, directory: Path) -> StoreBackup:
    """See :meth:`spear_core.api.StoreMaintenance.backup`."""
    async with backup_directory(directory) as partial:
        (partial / "blobs").mkdir(mode=0o700)
        with blobs.holding():  # what the copy knows is still there
            await environment.copy(partial)
            names, backup = await trio.to_thread.run_sync(_content, partial)
            size = await take_files(names, blobs.folder, partial / "blobs")
        return attrs.evolve(backup, bytes=backup.bytes + size)


def _content(folder: Path) -> tuple[list[str], StoreBackup]:
    with copied(folder) as content:
        backup = StoreBackup(
            revision=content.number(b"revision"),
            records=content.count("objects"),
            bytes=(folder / "data.mdb").stat().st_size,
        )
        return _files(content), backup


def _files(content: Copied) -> list[str]:
    return [name.hex() for name in content.keys("blobs")]


async def restore_objects(backup: Path, folder: Path) -> None:
    """See ``restore`` of :class:`spear_core.api.ObjectStoreSpec`."""
    await restore_directory(backup, folder, kind="objects", files=_files)


async def check_objects(
    environment: Environment, blobs: Blobs
) -> tuple[StoreReport, dict[str, str]]:
    """What is wrong, and the files that are not what they were, by object."""
    damaged: dict[str, str] = {}

    def look(txn: Transaction) -> StoreReport:
        check = ObjectCheck(txn, environment.databases, environment.go_on, blobs=blobs, deep=True)
        report = check.report()
        damaged.update(check.damaged)
        return report

    with blobs.holding():  # what is written over meanwhile is no loss
        report = await environment.scan(look)
    return report, damaged


def repair_objects(
    txn: Transaction, environment: Environment, blobs: Blobs, damaged: Mapping[str, str]
) -> tuple[StoreReport, Done | None]:
    """Put it right in a write transaction: what was done, and what was removed."""
    check = ObjectCheck(
        txn, environment.databases, lambda: None, blobs=blobs, deep=False, damaged=damaged
    )
    report = check.repair()
    if not check.removed:
        return report, None
    revision = check.number(b"revision") + 1
    check.put("meta", b"revision", b"%d" % revision)
    return report, Done(revision, [(key, None) for key in check.removed])


def orphans(names: Iterable[str], *, repaired: bool) -> tuple[StoreProblem, ...]:
    """The problems that files are which no record knows."""
    return tuple(
        StoreProblem(where=f"the file {name}", what="belongs to no object", repaired=repaired)
        for name in names
    )


def foreign(paths: Iterable[Path]) -> tuple[StoreProblem, ...]:
    """The problems that files are which nobody here has made."""
    what = "is none of the store's; move it away"
    return tuple(StoreProblem(where=f"the file {path}", what=what) for path in paths)


def remove_orphans(blobs: Blobs, names: Iterable[str]) -> None:
    """Remove these files."""
    for name in names:
        blobs.remove(name)


async def stray_files(
    names: Sequence[str], reader: ObjectReader, blobs: Blobs, history: History[Any, Any]
) -> Sequence[str]:
    """Those files that no record knows, and nobody writes or sees."""
    # of a revision that has been told of: what it ended is kept by then, if anybody sees it
    while (unknown := reader.unknown(names, history.revision)) is None:
        await trio.lowlevel.checkpoint()
    return [
        name
        for name in unknown
        if not blobs.in_use(name) and blobs.path(name).exists()  # it may be gone since
    ]
