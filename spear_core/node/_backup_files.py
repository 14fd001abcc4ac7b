"""Files on their way into a backup and out of it. Everything here blocks, and stops within a file
of a cancellation of the trio task that waits for it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trio.from_thread import check_cancelled

from spear_core.errors import SpearError, StoreFullError
from spear_core.stores import sync

__all__ = [
    "copy_tree",
    "disk_trouble",
    "remove_tree",
    "sync_directories",
    "take_file",
]

_PIECE = 4 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP)


@contextmanager
def disk_trouble(where: Path) -> Iterator[None]:
    """Say in our words what the disk of ``where`` has against us.

    :raises StoreFullError: it is full. :raises SpearError: anything else.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise StoreFullError(f"no room left on the disk of {where} ({reason})") from error
        about = f" ({error.filename})" if error.filename else ""
        raise SpearError(
            f"{where} cannot be used: {reason}{about}", code="failed_precondition"
        ) from error


def take_file(source: Path, target: Path, *, link: bool) -> None:
    """Have a file there too.

    :param link: as a hard link where that is possible: for files that never change.
    """
    check_cancelled()
    if link:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        else:
            return
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(reading, "rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
        while piece := old.read(_PIECE):
            check_cancelled()
            left = memoryview(piece)
            while left:
                left = left[new.write(left) :]
        os.fsync(new.fileno())


def copy_tree(source: Path, target: Path, *, link: bool = False) -> None:
    """Have the regular files below a directory there too, but for ``.new-…``,
    which are being written. What goes away meanwhile is left out; a link is none of ours."""
    target.mkdir(mode=0o700)
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        path, place = Path(entry.path), target / entry.name
        if entry.name.startswith(".new-") or entry.is_symlink():
            continue
        if entry.is_dir():
            copy_tree(path, place, link=link)
        elif entry.is_file():
            with suppress(FileNotFoundError):
                take_file(path, place, link=link)


def sync_directories(root: Path) -> None:
    """Have every name below ``root`` on the disk itself, and its own last."""
    for directory, _, _ in os.walk(root, topdown=False):
        check_cancelled()
        sync(Path(directory))


def remove_tree(root: Path) -> None:
    """Remove a directory, read-only ones in it as well; what cannot be removed stays."""
    for directory, _, _ in os.walk(root):
        with suppress(OSError):
            Path(directory).chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)
