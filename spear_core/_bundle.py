"""Several files as one artifact: a zip archive on the way, a directory where it runs.

An archive comes from whoever may deploy, so nothing it says is believed: names are checked before
anything is written, only regular files are made, and sizes are counted while unpacking. What
identifies a bundle is the digest of its manifest, so neither the order of an archive nor its
compression matters.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from spear_core.errors import InvalidRequestError

__all__ = ["BundleFile", "BundleLimits", "digest_of", "pack", "read_tree", "unpack"]

_CHUNK = 1 << 20
_LONGEST_PATH = 1024
"""Bytes of UTF-8."""
_HEADING = b"spear bundle 1\n"
_END_RECORD = struct.Struct("<4s4H2LH")
_LONGEST_COMMENT = 1 << 16
_DIRECTORY_BYTES_PER_FILE = 512
"""Of an archive's table of contents: 46 bytes and a name of usual length."""


@attrs.frozen(kw_only=True)
class BundleLimits:
    """How large a bundle may be."""

    files: int
    bytes: int
    """Sum of the unpacked files."""


@attrs.frozen(kw_only=True, order=True)
class BundleFile:
    """One line of a manifest."""

    path: str
    """Relative, with ``/``."""
    executable: bool
    sha256: str
    size: int


def digest_of(files: Iterable[BundleFile]) -> str:
    """What identifies these files together: sha256 of the manifest, 64 hex digits.

    The manifest has a heading, then for each file, ordered by path, its sha256, ``x`` or ``-`` and
    its path, each line ended by a NUL because a path may contain a line end.
    """
    digest = hashlib.sha256(_HEADING)
    for file in sorted(files):
        mode = "x" if file.executable else "-"
        digest.update(f"{file.sha256} {mode} {file.path}\0".encode())
    return digest.hexdigest()


def pack(root: Path, paths: Iterable[str], *, limit: int) -> bytes:
    """An archive of these files below ``root``, the same for the same content.

    :param limit: bytes that the files may have together.
    :raises InvalidRequestError: they have more. :raises OSError: one cannot be read.
    """
    buffer = io.BytesIO()
    left = limit
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(paths):
            with open(root / path, "rb") as file:
                executable = os.fstat(file.fileno()).st_mode & 0o111
                content = file.read(left + 1)
            left -= len(content)
            if left < 0:
                raise InvalidRequestError(
                    f"the files of {root} have more than {limit} bytes together; leave out what is "
                    "not needed with `exclude` in spear.toml"
                )
            info = zipfile.ZipInfo(path)  # of 1980: a date would make each archive another
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()


def unpack(content: bytes, target: Path, limits: BundleLimits) -> list[BundleFile]:
    """Write an archive's files below the empty directory ``target`` and return their manifest.

    Files are readable, and executable where the archive says so, by their owner only.

    :raises InvalidRequestError: it is damaged, too large, or has anything but regular files with
        plain relative names. :raises OSError: the disk is full or broken.
    """
    _check_directory(content, limits)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _checked(archive.infolist(), limits)
            left = limits.bytes
            files = []
            for path, info in members.items():
                file = _extract(archive, info, target / path, left)
                left -= file.size
                files.append(attrs.evolve(file, path=path))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InvalidRequestError(f"the bundle is no archive that can be read: {error}") from error
    return sorted(files)


def _check_directory(content: bytes, limits: BundleLimits) -> None:
    """Look at the size of the table of contents before it is read into memory."""
    at = content.rfind(b"PK\x05\x06", max(0, len(content) - _LONGEST_COMMENT - _END_RECORD.size))
    if at < 0 or len(content) - at < _END_RECORD.size:
        raise InvalidRequestError("the bundle is no zip archive, or it was cut short")
    *_, count, size, _offset, _comment = _END_RECORD.unpack_from(content, at)
    if count > limits.files or size > limits.files * _DIRECTORY_BYTES_PER_FILE:
        raise InvalidRequestError(_too_many(limits))


def _too_many(limits: BundleLimits) -> str:
    return f"the bundle has more than {limits.files} files (artifacts.max_files)"


def _checked(
    infos: Iterable[zipfile.ZipInfo], limits: BundleLimits
) -> Mapping[str, zipfile.ZipInfo]:
    """Every file by its path; directories are left out, files make them."""
    members: dict[str, zipfile.ZipInfo] = {}
    directories: set[str] = set()
    for info in infos:
        name = info.orig_filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        if name.endswith("/") and kind in (0, stat.S_IFDIR):
            _check_path(name.rstrip("/"))
            continue
        if kind not in (0, stat.S_IFREG):
            what = "a symbolic link" if kind == stat.S_IFLNK else "no regular file"
            raise InvalidRequestError(f"the bundle's {name!r} is {what}; it may have files only")
        _check_path(name)
        if name in members:
            raise InvalidRequestError(f"the bundle has {name!r} twice")
        members[name] = info
        parts = name.split("/")
        directories |= {"/".join(parts[:end]) for end in range(1, len(parts))}
    if both := sorted(directories & members.keys()):
        raise InvalidRequestError(f"the bundle has {both[0]!r} as a file and as a directory")
    if len(members) > limits.files:
        raise InvalidRequestError(_too_many(limits))
    return members


def _check_path(path: str) -> None:
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        length = 0
    plain = all(part not in ("", ".", "..") for part in path.split("/"))
    if not plain or not 0 < length <= _LONGEST_PATH or "\0" in path or "\\" in path:
        raise InvalidRequestError(
            f"the bundle's file name {path[:100]!r} is no plain relative path (it may not begin "
            f"with '/', nor have '.', '..', '\\' or more than {_LONGEST_PATH} bytes)"
        )


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, left: int) -> BundleFile:
    executable = bool((info.external_attr >> 16) & 0o111)
    digest = hashlib.sha256()
    size = 0
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with archive.open(info) as source, path.open("xb") as file:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > left:
                raise InvalidRequestError(
                    "the bundle's files have more bytes than artifacts.max_bytes allows"
                )
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fchmod(file.fileno(), 0o500 if executable else 0o400)
        os.fsync(file.fileno())
    return BundleFile(path="", executable=executable, sha256=digest.hexdigest(), size=size)


def read_tree(root: Path) -> list[BundleFile]:
    """The manifest of what is on disk below ``root``.

    :raises OSError: something cannot be read, or is no regular file.
    """
    files = []
    for directory, names, filenames in os.walk(root, onerror=_raise):
        base = Path(directory)
        for name in (*filenames, *(n for n in names if (base / n).is_symlink())):
            path = base / name
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode):
                raise OSError(f"{path} is no regular file")
            with open(path, "rb") as file:
                files.append(
                    BundleFile(
                        path=path.relative_to(root).as_posix(),
                        executable=bool(mode & 0o100),
                        sha256=hashlib.file_digest(file, "sha256").hexdigest(),
                        size=os.fstat(file.fileno()).st_size,
                    )
                )
    return sorted(files)


def _raise(error: OSError) -> None:
    raise error
