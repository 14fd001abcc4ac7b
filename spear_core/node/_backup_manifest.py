"""The manifest of a backup, ``manifest.json``: what it is of, and every file with its checksum.

::

    {"sha256": of the next value as it is written, "backup": {"format": 1, …, "files": […]}}
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import msgspec

from spear_core.errors import StoreCorruptError, StoreFormatError

__all__ = [
    "MANIFEST",
    "BackupFile",
    "CopiedStore",
    "Manifest",
    "check_files",
    "decode_manifest",
    "encode_manifest",
    "list_files",
    "read_manifest",
]

FORMAT = 1
MANIFEST = "manifest.json"
_KEPT = frozenset({"artifacts", "logs", "node.id", "node.store", "stores"})
"""What a backup has, and no other: a restored file is never a node's lock or socket."""
_PIECE = 4 << 20
_LONGEST = 512 << 20
"""Bytes of a manifest; a million files have 150 million."""

Moved = Callable[[int], None]
"""Told how many bytes more were read; raises to stop."""


class BackupFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a backup."""

    path: str
    """Relative, with ``/``."""
    size: int
    sha256: str
    executable: bool = False


class CopiedStore(msgspec.Struct, frozen=True, kw_only=True):
    """The copy of a store in a backup."""

    store: str
    """The store's name, such as ``lmdb``: another one cannot read it."""
    revision: int
    records: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says of itself."""

    format: int = FORMAT
    spear: str
    """The version that has written it."""
    created_at: float
    node_id: str
    metadata: CopiedStore | None = None
    objects: CopiedStore | None = None
    files: tuple[BackupFile, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)


class _Sealed(msgspec.Struct):
    sha256: str
    backup: msgspec.Raw


class _Format(msgspec.Struct):
    format: int


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of ``manifest.json``."""
    body = msgspec.json.encode(manifest)
    seal = hashlib.sha256(body).hexdigest()
    return b'{"sha256":"%s","backup":%s}\n' % (seal.encode(), body)


def decode_manifest(content: bytes, where: object) -> Manifest:
    """The reverse.

    :raises StoreFormatError: it was written by a newer SPEAR.
    :raises StoreCorruptError: it is damaged.
    """
    try:
        sealed = msgspec.json.decode(content, type=_Sealed)
        body = bytes(sealed.backup)
        found = msgspec.json.decode(body, type=_Format).format
        if found > FORMAT:
            raise StoreFormatError(
                f"the backup {where} has the format {found}, and this version of SPEAR knows "
                f"{FORMAT} at most; restore it with a newer one"
            )
        if hashlib.sha256(body).hexdigest() != sealed.sha256:
            raise StoreCorruptError(f"{where}: {MANIFEST} is damaged: its checksum differs")
        manifest = msgspec.json.decode(body, type=Manifest)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise StoreCorruptError(f"{where}: {MANIFEST} is damaged ({error})") from error
    for file in manifest.files:
        parts = PurePosixPath(file.path).parts
        if not parts or parts[0] not in _KEPT or ".." in parts or "\0" in file.path:
            raise StoreCorruptError(f"{where}: {MANIFEST} has the file {file.path!r}")
    return manifest


def read_manifest(backup: Path) -> Manifest:
    """The manifest of the backup in a directory. :raises StoreFormatError: there is none."""
    path = backup / MANIFEST
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreFormatError(
            f"{backup} is no backup of a node, or one that was never finished: it has no {MANIFEST}"
        ) from error
    return decode_manifest(content, backup)


def list_files(root: Path, moved: Moved) -> Iterator[BackupFile]:
    """Every file below ``root``, with its checksum. Reads all of it."""
    for directory, names, filenames in os.walk(root):
        names.sort()
        for name in sorted(filenames):
            path = Path(directory) / name
            size, digest = _digest(path, moved)
            yield BackupFile(
                path=path.relative_to(root).as_posix(),
                size=size,
                sha256=digest,
                executable=bool(path.stat().st_mode & 0o100),
            )


def check_files(root: Path, manifest: Manifest, moved: Moved) -> None:
    """Compare every file with its checksum.

    :raises StoreCorruptError: names each that is missing or is not what it was.
    """
    wrong = [line for file in manifest.files if (line := _wrong(root, file, moved))]
    if wrong:
        more = f", and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise StoreCorruptError(
            f"the backup {root} is damaged, and nothing was restored: {'; '.join(wrong[:10])}{more}"
        )


def _wrong(root: Path, file: BackupFile, moved: Moved) -> str:
    path = root / file.path
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return f"{file.path} is no regular file"
        size, digest = _digest(path, moved)
    except FileNotFoundError:
        return f"{file.path} is missing"
    except OSError as error:
        return f"{file.path} cannot be read ({error.strerror})"
    if size != file.size:
        return f"{file.path} has {size} bytes instead of {file.size}"
    return "" if digest == file.sha256 else f"{file.path} is not what it was: its checksum differs"


def _digest(path: Path, moved: Moved) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        moved(0)
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            moved(len(piece))
    return size, digest.hexdigest()
