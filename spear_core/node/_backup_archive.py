"""A backup as one file: a tar archive that begins with the manifest. Everything here blocks."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from spear_core.errors import InvalidRequestError, StoreCorruptError, StoreFormatError
from spear_core.node._backup_files import disk_trouble
from spear_core.node._backup_manifest import MANIFEST, Manifest, Moved, decode_manifest
from spear_core.stores import sync

__all__ = ["is_archive", "pack_archive", "read_archive_manifest", "unpack_archive"]

_PIECE = 4 << 20


def is_archive(path: Path) -> bool:
    """Whether a backup of this name is one file."""
    return path.suffix == ".tar"


def pack_archive(directory: Path, file: Path, manifest: Manifest, moved: Moved) -> None:
    """Make an archive of the backup in a directory; it has its name when it is whole.

    :raises InvalidRequestError: the file exists. :raises StoreFullError: the disk is full.
    """
    with disk_trouble(file):
        descriptor, name = tempfile.mkstemp(
            prefix=f"{file.name}.", suffix=".partial", dir=file.parent
        )
        partial = Path(name)
        try:
            with open(descriptor, "wb") as raw:
                with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    for path in (MANIFEST, *(each.path for each in manifest.files)):
                        _add(archive, directory / path, path, moved)
                raw.flush()
                os.fsync(raw.fileno())
            os.link(partial, file)  # unlike a rename, it replaces nothing
            sync(file.parent)
        except FileExistsError as error:
            raise InvalidRequestError(f"{file} exists already; somebody else made it") from error
        finally:
            with suppress(OSError):
                partial.unlink()


def _add(archive: tarfile.TarFile, source: Path, path: str, moved: Moved) -> None:
    with source.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        member = tarfile.TarInfo(path)
        member.size, member.mtime, member.mode = found.st_size, found.st_mtime, 0o600
        archive.addfile(member, _Counted(file, moved))


class _Counted:
    """A file that says how much of it was read."""

    def __init__(self, file: IO[bytes], moved: Callable[[int], None]) -> None:
        self._file = file
        self._moved = moved

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._moved(len(piece))
        return piece


def read_archive_manifest(file: Path) -> Manifest:
    """The manifest of an archive.

    :raises StoreFormatError: it is none. :raises StoreCorruptError: it is damaged.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            member = archive.next()
            if member is None or member.name != MANIFEST or not member.isreg():
                raise StoreFormatError(f"{file} is no backup of a node: it has no {MANIFEST}")
            content = archive.extractfile(member)
            assert content is not None
            return decode_manifest(content.read(), file)
    except (tarfile.TarError, EOFError) as error:
        raise StoreFormatError(f"{file} is no backup of a node, or is cut off ({error})") from error


def unpack_archive(file: Path, target: Path, manifest: Manifest, moved: Moved) -> None:
    """Write what the manifest names below a directory; nothing else of the archive.

    :raises StoreCorruptError: it is cut off or damaged. What is missing, or differs from its
        checksum, is left to :func:`check_files`.
    """
    wanted = {each.path: each for each in manifest.files}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                known = wanted.pop(member.name, None)
                if known is None or not member.isreg():
                    continue
                content = archive.extractfile(member)
                assert content is not None
                _write(content, target / known.path, moved)
    except (tarfile.TarError, EOFError) as error:
        raise StoreCorruptError(f"the backup {file} is damaged or cut off ({error})") from error


def _write(content: IO[bytes], path: Path, moved: Moved) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o400)
        while piece := content.read(_PIECE):
            file.write(piece)
            moved(len(piece))
        file.flush()
        os.fsync(file.fileno())
