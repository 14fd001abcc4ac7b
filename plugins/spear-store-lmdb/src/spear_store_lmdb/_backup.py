"""Copies of an environment and its files, and the way back."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb
import trio

from spear_core.errors import (
    InvalidRequestError,
    StoreCorruptError,
    StoreFormatError,
    StoreInUseError,
)
from spear_core.stores import sync

from ._disk_errors import disk_trouble
from ._folder import FORMAT

__all__ = ["Copied", "backup_directory", "copied", "restore_directory", "take_files"]

_AT_ONCE = 100
"""Files that are copied before it is asked whether to go on."""

_TIDYING = 60.0
"""Seconds that removing half a backup may take after a cancellation."""

_DATA = "data.mdb"


@asynccontextmanager
async def backup_directory(directory: Path) -> AsyncGenerator[Path, None]:
    """A directory that gets this name when the block ends, and is removed when it fails."""
    partial = _begin(directory)
    try:
        yield partial
        await trio.to_thread.run_sync(_finish, partial, directory)
    except BaseException:
        with trio.move_on_after(_TIDYING, shield=True):
            await trio.to_thread.run_sync(shutil.rmtree, partial, True)
        raise


def _begin(directory: Path) -> Path:
    _check_free(directory)
    prefix = f"{directory.name}."
    try:
        return Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=directory.parent))
    except OSError as exc:
        raise disk_trouble(exc, directory.parent) from exc


def _check_free(directory: Path) -> None:
    if os.path.lexists(directory):
        raise InvalidRequestError(f"directory: {directory} exists already")


def _finish(partial: Path, directory: Path) -> None:
    try:
        for folder in (partial / "blobs", partial):
            if folder.exists():
                sync(folder)
        _check_free(directory)
        partial.rename(directory)
        sync(directory.parent)
    except OSError as exc:
        raise disk_trouble(exc, directory.parent) from exc


class Copied:
    """What is in the copy of an environment."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env

    def number(self, name: bytes) -> int:
        """A number of the store's. **Raises** ``ValueError`` where it is none."""
        return int(self._meta(name) or b"0")

    def text(self, name: bytes) -> str:
        """An entry of ``meta``; empty where there is none."""
        return self._meta(name).decode(errors="replace")

    def count(self, name: str) -> int:
        """Entries of a database."""
        database = self._database(name)
        with self._env.begin() as txn:
            return int(txn.stat(database)["entries"])

    def keys(self, name: str) -> list[bytes]:
        """Keys of a database."""
        database = self._database(name)
        with self._env.begin() as txn:
            return [bytes(key) for key, _ in txn.cursor(db=database)]

    def _meta(self, name: bytes) -> bytes:
        database = self._database("meta")
        with self._env.begin() as txn:
            return bytes(txn.get(name, db=database) or b"")

    def _database(self, name: str) -> Any:
        return self._env.open_db(name.encode(), create=False)


@contextmanager
def copied(folder: Path) -> Iterator[Copied]:
    """The environment of a backup, to be read. Blocks."""
    env = lmdb.open(str(folder), readonly=True, lock=False, max_dbs=20, create=False)
    try:
        yield Copied(env)
    finally:
        env.close()


async def take_files(names: Sequence[str], source: Path, target: Path) -> int:
    """Have these files there too: as hard links, or as copies on another disk. Their bytes.

    **Raises** :exc:`~spear_core.errors.StoreFullError`, and
    :exc:`~spear_core.errors.StoreCorruptError` when one is missing.
    """
    total = 0
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        total += await trio.to_thread.run_sync(_take, some, source, target)
        await trio.lowlevel.checkpoint()
    return total


def _take(names: Sequence[str], source: Path, target: Path) -> int:
    total = 0
    for name in names:
        try:
            try:
                os.link(source / name, target / name)
            except OSError as exc:
                if exc.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                    raise
                shutil.copyfile(source / name, target / name)
                (target / name).chmod(0o400)
            sync(target / name)
            total += (target / name).stat().st_size
        except FileNotFoundError as exc:
            raise StoreCorruptError(
                f"{source / name}, the file of an object, is missing; run `spear fsck`"
            ) from exc
        except OSError as exc:
            raise disk_trouble(exc, target) from exc
    return total


async def restore_directory(
    backup: Path, folder: Path, *, kind: str, files: Callable[[Copied], Sequence[str]]
) -> None:
    """Put what is in a backup where a store will be opened.

    :param kind: what it has to be. :param files: which files belong to it.

    **Raises** as ``restore`` of :class:`spear_core.api.ObjectStoreSpec`.
    """
    if (folder / _DATA).exists():
        raise StoreInUseError(f"there is a store in {folder} already; move it away first")
    if not (backup / _DATA).is_file():
        raise StoreFormatError(f"{backup} is no backup of a store: it has no {_DATA}")

    def names() -> Sequence[str]:
        try:
            with copied(backup) as content:
                _check(content, backup, kind)
                return files(content)
        except (lmdb.Error, ValueError, OSError) as exc:
            raise StoreCorruptError(f"{backup / _DATA} is damaged ({exc})") from exc

    wanted = await trio.to_thread.run_sync(names)
    with suppress(OSError):  # an empty one may be there, and its lock
        await trio.to_thread.run_sync(_make_way, folder)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with backup_directory(folder) as partial:
        if kind == "objects":
            (partial / "blobs").mkdir(mode=0o700)
            await take_files(wanted, backup / "blobs", partial / "blobs")
        await trio.to_thread.run_sync(_copy_data, backup / _DATA, partial / _DATA)


def _check(content: Copied, backup: Path, kind: str) -> None:
    if content.text(b"kind") != f"spear {kind}":
        raise StoreFormatError(
            f"{backup / _DATA} holds {content.text(b'kind')!r}, not 'spear {kind}'"
        )
    if (version := content.number(b"format")) > FORMAT:
        raise StoreFormatError(
            f"{backup / _DATA} has the format {version}, and this version of spear-store-lmdb "
            f"knows {FORMAT} at most; upgrade it"
        )


def _make_way(folder: Path) -> None:
    """Remove what opening an environment leaves when it fails, if that is all there is."""
    left = {path.name for path in folder.iterdir()}
    if left <= {"lock", "lock.mdb", "blobs"}:
        with suppress(FileNotFoundError):
            (folder / "blobs").rmdir()
        for name in left - {"blobs"}:
            (folder / name).unlink()
        folder.rmdir()


def _copy_data(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
        target.chmod(0o600)
        sync(target)
    except OSError as exc:
        raise disk_trouble(exc, target.parent) from exc
