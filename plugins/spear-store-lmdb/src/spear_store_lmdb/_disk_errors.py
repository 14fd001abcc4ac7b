"""What LMDB and the disk say when they cannot go on, in our words."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from pathlib import Path

import lmdb

from spear_core.errors import StoreCorruptError, StoreError, StoreFullError

__all__ = ["damaged_file", "disk_trouble"]

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

_LITTLE = 1 << 20


def disk_trouble(exc: BaseException, folder: Path) -> StoreError:
    """What went wrong with the files below a folder, in our words."""
    text = f"{exc}"
    short = os.strerror(errno.EIO) in text and not _has_room(folder)
    if short or any(os.strerror(number) in text for number in _FULL):
        error: StoreError = StoreFullError(f"no room left on the disk of {folder}: {text}")
    elif isinstance(
        exc, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, struct.error)
    ):
        error = damaged_file(folder, text)
    else:
        error = StoreError(f"the store in {folder} cannot be used: {text}", code="unavailable")
    error.__cause__ = exc
    return error


def _has_room(folder: Path) -> bool:
    """Whether the disk takes a little more. LMDB calls a write that was cut short an I/O error,
    whatever the reason."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, _LITTLE)
    except OSError as exc:
        return exc.errno not in _FULL
    return True


def damaged_file(folder: Path, reason: str) -> StoreCorruptError:
    """What to raise when the environment of a folder is not what LMDB has written."""
    return StoreCorruptError(
        f"{folder / 'data.mdb'} is damaged ({reason}); restore a backup, or move {folder} away to "
        f"begin with an empty store"
    )
