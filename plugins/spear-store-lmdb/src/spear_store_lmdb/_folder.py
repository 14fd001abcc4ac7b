"""The folder of an environment: its lock, its file, its format, and the way to a newer format."""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import lmdb

from spear_core.errors import StoreFormatError, StoreInUseError
from spear_core.stores import sync

from ._disk_errors import damaged_file, disk_trouble
from ._transaction import Transaction

__all__ = ["FORMAT", "Migration", "opened_folder"]

Migration = Callable[[Transaction, Mapping[str, Any]], None]
"""Turns the content of one format into that of the next, in one transaction."""

FORMAT = 2
"""What this version writes. A newer one is refused, an older one is migrated."""

_FIRST_MAP = 1 << 30
"""Bytes of address space, not of disk or memory; grows by itself."""

_SPARE = 2
"""How often what is there already fits into the map at the beginning."""


@contextmanager
def opened_folder(
    folder: Path,
    *,
    kind: str,
    databases: dict[str, bool],
    durable: bool,
    migrations: Mapping[int, Migration],
    log: logging.Logger,
) -> Iterator[tuple[lmdb.Environment, dict[str, Any]]]:
    """What is in a folder, of our format and for no other process, and the handles of its
    databases. Arguments and errors as :func:`._environment.open_environment` has them."""
    with _held(folder):
        env = _opened(folder, len(databases) + 1, durable=durable)
        try:
            handles, found = _checked(env, folder, kind, databases, durable=durable)
            _migrate(env, folder, handles, range(found, FORMAT), migrations, log)
            yield env, handles
        finally:
            env.close()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make it, if there is none, and let no other process open it before the block ends."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise disk_trouble(exc, folder) from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreInUseError(
                f"another process has the store in {folder} open; stop it first"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _opened(folder: Path, databases: int, *, durable: bool) -> lmdb.Environment:
    data = folder / "data.mdb"
    if data.exists() and not data.is_file():  # a pipe would keep us for ever
        raise damaged_file(folder, "it is no regular file")
    there = data.exists() and data.stat().st_size
    size = max(_FIRST_MAP, _SPARE * there)
    try:
        env = lmdb.open(
            str(folder),
            map_size=size,
            max_dbs=databases,
            sync=durable,
            metasync=durable,
            mode=0o600,
        )
    except lmdb.VersionMismatchError as exc:
        raise StoreFormatError(f"{data} was written by another version of LMDB ({exc})") from exc
    except (lmdb.InvalidError, lmdb.CorruptedError) as exc:
        raise damaged_file(folder, str(exc)) from exc
    except (lmdb.Error, OSError) as exc:
        raise disk_trouble(exc, folder) from exc
    pages = env.info()["last_pgno"] + 1
    if there and data.stat().st_size < pages * env.stat()["psize"]:
        # a page beyond the end of the file would be a SIGBUS
        env.close()
        raise damaged_file(folder, f"cut off at {there} bytes")
    env.reader_check()
    return env


def _checked(
    env: lmdb.Environment,
    folder: Path,
    kind: str,
    databases: dict[str, bool],
    *,
    durable: bool,
) -> tuple[dict[str, Any], int]:
    """The handles of the databases, if the environment is one of ours, or new; and its format."""
    mine = f"spear {kind}".encode()
    try:
        with env.begin() as txn:
            empty = txn.stat()["entries"] == 0
        if not empty and not _has_meta(env):
            raise StoreFormatError(f"{folder / 'data.mdb'} is an LMDB file, but not one of SPEAR's")
        meta = env.open_db(b"meta")
        with env.begin() as txn:
            found, version = txn.get(b"kind", db=meta), txn.get(b"format", db=meta)
            # also what was killed when it was made
            names = {bytes(name).decode(errors="replace") for name, _ in txn.cursor()}
            empty = txn.stat(meta)["entries"] == 0 and names <= {"meta", *databases}
        if not empty and found != mine:
            raise StoreFormatError(f"{folder / 'data.mdb'} holds {found!r}, not {mine!r}")
        if version is not None and int(version) > FORMAT:
            raise StoreFormatError(
                f"{folder / 'data.mdb'} has the format {int(version)}, and this version of "
                f"spear-store-lmdb knows {FORMAT} at most; upgrade it"
            )
        handles = {
            name: env.open_db(name.encode(), dupsort=several) for name, several in databases.items()
        }
        if empty:
            if durable:
                _sync_names(folder)
            with env.begin(write=True, db=meta) as txn:
                txn.put(b"kind", mine)
                txn.put(b"format", b"%d" % FORMAT)
    except (lmdb.Error, OSError, ValueError) as exc:
        raise disk_trouble(exc, folder) from exc
    return {"meta": meta, **handles}, FORMAT if version is None else int(version)


def _sync_names(folder: Path) -> None:
    """Have the name of a new store on the disk itself, and those of the directories on the way to
    it in its file system: whoever made them need not have. What is above that is there already, and
    may be a file system that is never written to, which refuses."""
    device = folder.stat().st_dev
    for directory in (folder, *folder.resolve().parents):
        if directory.stat().st_dev != device:
            break
        with suppress(PermissionError):  # not ours, then, and older
            sync(directory)


def _has_meta(env: lmdb.Environment) -> bool:
    with env.begin() as txn:
        return txn.get(b"meta") is not None


def _migrate(
    env: lmdb.Environment,
    folder: Path,
    handles: Mapping[str, Any],
    steps: Iterable[int],
    migrations: Mapping[int, Migration],
    log: logging.Logger,
) -> None:
    """Each step in one transaction with the new number, so that it is done, or not begun."""
    for old in steps:
        if old not in migrations:
            raise StoreFormatError(f"{folder / 'data.mdb'} has the format {old}, which is unknown")
        log.info("bringing %s from format %s to %s", folder, old, old + 1)
        while True:
            try:
                with env.begin(write=True) as txn:
                    migrations[old](cast(Transaction, txn), handles)
                    txn.put(b"format", b"%d" % (old + 1), db=handles["meta"])
                break
            except lmdb.MapFullError:
                env.set_mapsize(env.info()["map_size"] * 2)
            except (lmdb.Error, OSError, struct.error) as exc:
                raise disk_trouble(exc, folder) from exc
