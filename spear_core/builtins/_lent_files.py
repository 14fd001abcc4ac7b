"""The file of an object in the hands of running code, which must not be able to change it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager

import trio

from spear_core.api import ObjectView, OwnedFd
from spear_core.builtins._read_only import ReadOnlyFolders
from spear_core.errors import ResourceExhaustedError, StoreError

__all__ = ["LentFiles", "open_lent_files"]

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
_F_SEAL_FUTURE_WRITE = 0x10
"""Nobody can write but by a mapping that existed before: the store's, which then does not."""


class LentFiles:
    """Makes descriptors for others: of sealed memory, by a read-only mount, or of a sealed copy."""

    def __init__(self, folders: ReadOnlyFolders) -> None:
        self._folders = folders
        self._one = trio.CapacityLimiter(1)

    async def lend(self, view: ObjectView) -> OwnedFd:
        """A descriptor of the view's file, by which nobody can write to it.

        **Raises** :exc:`~spear_core.errors.ResourceExhaustedError` and
        :exc:`~spear_core.errors.StoreError`.
        """
        assert view.fd is not None
        with _out_of_descriptors(view):
            if _is_sealed(view.fd):
                return OwnedFd(os.dup(view.fd))
            if self._folders.knows(view.fd):
                found = self._folders.reopen(view.fd)
            else:
                found = await trio.to_thread.run_sync(
                    self._folders.reopen, view.fd, limiter=self._one
                )
            if found is None:
                found = await trio.to_thread.run_sync(_sealed_copy, view.fd, view.stat.size)
            return OwnedFd(found)


@contextmanager
def _out_of_descriptors(view: ObjectView) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise ResourceExhaustedError(f"no file for {view.stat.key!r}: {exc.strerror}") from exc


def _is_sealed(fd: int) -> bool:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # no memory at all
        return False
    if seals & _F_SEAL_FUTURE_WRITE:
        seals |= fcntl.F_SEAL_WRITE
    return seals & _SEALS == _SEALS


def _sealed_copy(fd: int, size: int) -> int:
    copy = os.memfd_create("spear-object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        at = 0
        while at < size:
            count = os.sendfile(copy, fd, at, size - at)
            if not count:
                raise StoreError(f"the file of an object ends at byte {at} of {size}")
            at += count
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(copy)
        raise
    return copy


@contextmanager
def open_lent_files() -> Generator[LentFiles]:
    """Lends files for as long as the block lasts; what was lent stays as it is."""
    folders = ReadOnlyFolders()
    try:
        yield LentFiles(folders)
    finally:
        folders.close()
