"""Large values: one file each, written once, never changed, mapped by whoever reads."""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from spear_core.api import ObjectStat, ObjectView
from spear_core.errors import StoreCorruptError, StoreError
from spear_core.stores import PipeTaker, hashed_beside

from ._disk_errors import disk_trouble
from ._mapped_files import MappedFiles, WrongSizeError
from ._writeback import begin_writeback

__all__ = ["Blobs", "NewBlob", "opened_blobs"]

_NAME = re.compile("[0-9a-f]{32}")

_PIECE = 16 << 20
"""Bytes in one call: Linux writes at most 2 GiB."""

_READ = 1 << 20

_BEGIN = 4 << 20
"""Bytes of which the disk is told at once, so that there is less to wait for at the end."""


class NewBlob(PipeTaker):
    """A file that is being written. All of it blocks; one thread at a time."""

    def __init__(self, blobs: Blobs, name: str, *, durable: bool) -> None:
        self.name = name
        self._blobs = blobs
        self._durable = durable
        self._splices = True
        self._size = self._begun = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(blobs.path(name), flags, 0o400)

    def append(self, value: memoryview) -> None:
        """**Raises** :exc:`~spear_core.errors.StoreFullError`."""
        try:
            for start in range(0, len(value), _BEGIN):
                piece = value[start : start + _BEGIN]
                _write_all(self._descriptor, piece)
                self._written(len(piece))
        except OSError as exc:
            raise self._blobs.trouble(exc) from exc

    def take(self, pipe: int, most: int) -> int:
        try:
            count = self._take(pipe, most)
        except BlockingIOError:
            raise
        except OSError as exc:
            raise self._blobs.trouble(exc) from exc
        self._written(count)
        return count

    def _take(self, pipe: int, most: int) -> int:
        if self._splices:
            try:  # straight into the file's pages, with no memory of ours in between
                return os.splice(pipe, self._descriptor, most, flags=os.SPLICE_F_NONBLOCK)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                self._splices = False  # not on this file system
        piece = os.read(pipe, min(most, _READ))
        _write_all(self._descriptor, memoryview(piece))
        return len(piece)

    def _written(self, more: int) -> None:
        self._size += more
        if self._durable and self._size - self._begun >= _BEGIN:
            begin_writeback(self._descriptor, self._begun, self._size - self._begun)
            self._begun = self._size

    def read_back(self, into: memoryview, at: int) -> int:
        try:
            if count := os.preadv(self._descriptor, [into], at):
                return count
        except OSError as exc:
            raise self._blobs.trouble(exc) from exc
        raise StoreCorruptError(f"the new file {self._blobs.path(self.name)} was cut off")

    def finish(self) -> None:
        """All of it is written: have it on the disk itself, if that is wanted, and close it."""
        try:
            if self._durable:
                os.fdatasync(self._descriptor)
            self._close()
            if self._durable:
                self._blobs.sync_folder()
        except OSError as exc:
            raise self._blobs.trouble(exc) from exc

    def discard(self) -> None:
        """Remove it."""
        self._close()
        self._blobs.remove(self.name)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class Blobs:
    """The files of a folder. Made by :func:`opened_blobs`.

    :param durable: whether a file is on the disk itself when it has been written.
    :param later: has something done in a thread, for what the disk takes long for.
    """

    def __init__(
        self, folder: Path, *, durable: bool, later: Callable[[Callable[[], None]], None]
    ) -> None:
        self.folder = self._folder = folder
        self._durable = durable
        self._later = later
        self._young: set[str] = set()
        self._maps = MappedFiles(lambda name: None)
        self._holders = 0
        self._held: list[str] = []
        self._going: set[str] = set()
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise disk_trouble(exc, folder) from exc

    def write(self, value: memoryview, *, hashed: bool) -> tuple[str, str]:
        """A new file with that value: its name and its sha256. Blocks; for a worker thread.

        **Raises** :exc:`~spear_core.errors.StoreFullError`; no file is left then.
        """
        with hashed_beside(value, wanted=hashed) as digest, self._new() as blob:
            blob.append(value)
            blob.finish()
            return blob.name, digest()

    def copy(self, source: int, size: int, *, hashed: bool) -> tuple[str, str]:
        """The same with all that is in an open file, which nobody can change."""
        # mapped at once: quicker than sendfile, which goes through a pipe page by page
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        with (
            mmap.mmap(source, size, prot=mmap.PROT_READ, flags=flags) as mapping,
            memoryview(mapping) as value,
        ):
            return self.write(value, hashed=hashed)

    def begin(self) -> NewBlob:
        """A new file, to be written piece by piece."""
        name = secrets.token_hex(16)
        self._young.add(name)
        try:
            return NewBlob(self, name, durable=self._durable)
        except OSError as exc:
            self._young.discard(name)
            raise disk_trouble(exc, self._folder) from exc

    def close(self) -> None:
        """Let go of what was kept for the next reader."""
        self._maps.close()

    def settle(self, name: str) -> None:
        """A record knows the new file from now on."""
        self._young.discard(name)

    @contextmanager
    def _new(self) -> Iterator[NewBlob]:
        blob = self.begin()
        try:
            yield blob
        except BaseException:
            blob.discard()
            raise

    def path(self, name: str) -> Path:
        """Where a file is, or would be."""
        return self._folder / name

    def trouble(self, exc: OSError) -> StoreError:
        """What to raise when a file here cannot be written."""
        return disk_trouble(exc, self._folder)

    def sync_folder(self) -> None:
        """Have the names of new files on the disk itself."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, name: str) -> None:
        """Remove a file. Whoever maps it goes on reading it."""
        self._young.discard(name)
        if self._holders:
            self._held.append(name)
            return
        self._maps.drop(name)
        path = self._folder / name
        with suppress(OSError):  # it is swept at the next start
            if path.stat().st_size > _PIECE:
                self._going.add(name)
                self._later(partial(self._unlink, name))
            else:
                path.unlink()

    def _unlink(self, name: str) -> None:
        with suppress(OSError):
            self.path(name).unlink()
        self._going.discard(name)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Remove nothing before the block ends."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                held, self._held = self._held, []
                for name in held:
                    self.remove(name)

    def names(self) -> list[str]:
        """The files that look like ours."""
        return [entry.name for entry in os.scandir(self._folder) if _NAME.fullmatch(entry.name)]

    def foreign(self) -> list[Path]:
        """The others."""
        return sorted(path for path in self._folder.iterdir() if not _NAME.fullmatch(path.name))

    def in_use(self, name: str) -> bool:
        """Whether it is being written, or will be removed in any case."""
        return name in self._young or name in self._held or name in self._going

    def check(self, name: str, stat: ObjectStat) -> None:
        """**Raises** :exc:`~spear_core.errors.StoreCorruptError` when the file is missing, or not
        of its size."""
        try:
            size = (self._folder / name).stat().st_size
        except OSError as exc:
            raise self._damaged(name, stat, "is missing") from exc
        if size != stat.size:
            raise self._damaged(name, stat, _has(size, stat))

    def pieces(self, name: str, stat: ObjectStat, size: int) -> Iterator[bytes]:
        """What is in a file. Blocks. **Raises** likewise, and when it cannot be read."""
        self.check(name, stat)
        try:
            with (self._folder / name).open("rb", buffering=0) as file:
                while piece := file.read(size):
                    yield piece
        except OSError as exc:
            raise self._damaged(name, stat, f"cannot be read ({exc})") from exc

    def sweep(self, known: Callable[[str], bool]) -> int:
        """Remove the files that no record knows, and say how many there were."""
        removed = 0
        for entry in os.scandir(self._folder):
            if not known(entry.name):
                self.remove(entry.name)
                removed += 1
        return removed

    @contextmanager
    def mapped(self, name: str, stat: ObjectStat) -> Iterator[ObjectView]:
        """The value in that file, for as long as the block lasts."""
        path = f"{self._folder}/{name}"
        try:
            held = self._maps.hold(name, path, stat.size)
        except FileNotFoundError as exc:
            raise self._damaged(name, stat, "is missing") from exc
        except WrongSizeError as exc:
            raise self._damaged(name, stat, _has(exc.size, stat)) from exc
        except OSError as exc:
            raise disk_trouble(exc, self._folder) from exc
        data = memoryview(held.content)
        file = _File(path)
        try:
            yield ObjectView(stat=stat, data=data, fd=file.opened)
        finally:
            with suppress(BufferError):  # what was made from it keeps the mapping
                data.release()
            self._maps.release(held)
            file.close()

    def _damaged(self, name: str, stat: ObjectStat, what: str) -> StoreCorruptError:
        return StoreCorruptError(
            f"the file of object {stat.key!r}, {self._folder / name}, {what}; delete the object, "
            f"or restore a backup"
        )


class _File:
    """A descriptor of a file, opened when it is asked for: few of those who read want one."""

    __slots__ = ("_descriptor", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None

    def opened(self) -> int | None:
        """``None``: no descriptors are left, or it is closed."""
        if self._descriptor is None and self._path:
            with suppress(OSError):
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def close(self) -> None:
        self._path = ""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def opened_blobs(
    folder: Path, *, durable: bool, later: Callable[[Callable[[], None]], None]
) -> Iterator[Blobs]:
    """The files of a folder, which is made if it is not there; see :class:`Blobs`.

    **Raises** :exc:`~spear_core.errors.StoreError`.
    """
    blobs = Blobs(folder, durable=durable, later=later)
    try:
        yield blobs
    finally:
        blobs.close()


def _has(size: int, stat: ObjectStat) -> str:
    return f"has {size} bytes instead of {stat.size}"


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]
