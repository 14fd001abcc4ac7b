"""Large values: one file each, written once, never changed, mapped by whoever reads."""

from __future__ import annotations

import errno
import mmap
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from spear_core.api import ObjectStat, ObjectView
from spear_core.errors import StoreCorruptError, StoreError
from spear_core.stores import hashed_beside, sync

from ._disk_errors import disk_trouble
from ._mapped_files import MappedFiles, WrongSizeError
from ._new_blob import NewBlob
from ._recycled_files import RecycledFiles

__all__ = ["Blobs", "opened_blobs"]

_NAME = re.compile("[0-9a-f]{32}")

_AT_ONCE = 16 << 20
"""Bytes that a file has at most to be removed where that is asked for, in a few milliseconds."""

_IDLE_S = 10.0
"""A file that has waited for a value for so long, or up to twice that, is removed."""


class Blobs:
    """The files of a folder. Made by :func:`opened_blobs`.

    :param durable: whether a file is on the disk itself when it has been written.
    :param recycle_bytes: what may wait for the next values, unless durable: then the disk has seen
        every file, and none can be used again.
    :param later: has something done in a thread, for what the disk takes long for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        durable: bool,
        recycle_bytes: int,
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self.folder = self._folder = folder
        self._durable = durable
        self._later = later
        self._young: set[str] = set()
        self._recycled = RecycledFiles(
            folder, most_bytes=0 if durable else recycle_bytes, remove=self._remove
        )
        self._maps = MappedFiles(self._recycled.seen)
        self._holders = 0
        self._held: list[str] = []
        self._going: set[str] = set()
        self._unlinking = threading.Lock()
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise disk_trouble(exc, folder) from exc

    def write(self, value: memoryview, *, hashed: bool) -> tuple[str, str]:
        """A new file with that value: its name and its sha256. Blocks; for a worker thread.

        **Raises** :exc:`~spear_core.errors.StoreFullError`; no file is left then.
        """
        with hashed_beside(value, wanted=hashed) as digest, self._named() as name:
            if not self._recycled.fill(name, value):
                self._write_new(name, value)
            return name, digest()

    def _write_new(self, name: str, value: memoryview) -> None:
        blob = self._begun(name)
        try:
            blob.append(value)
            blob.finish()
        except BaseException:
            blob.discard()
            raise

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
        with self._named() as name:
            return self._begun(name)

    def _begun(self, name: str) -> NewBlob:
        try:
            return NewBlob(self, name, durable=self._durable)
        except OSError as exc:
            raise disk_trouble(exc, self._folder) from exc

    def close(self) -> None:
        """Let go of what was kept for the next reader, and for the next value."""
        self._maps.close()
        self._recycled.close()

    async def give_back(self) -> None:
        """Remove files that no value has needed for a while, until cancelled."""
        await self._recycled.sweep_idle(_IDLE_S)

    def makes_room(self, exc: OSError) -> bool:
        """Whether it is worth another attempt: the disk was full, and has more room now."""
        return exc.errno in (errno.ENOSPC, errno.EDQUOT) and self.make_room()

    def make_room(self) -> bool:
        """Remove at once what waits for other values, or to be removed; whether anything did."""
        going = list(self._going)
        for name in going:
            self._unlink(name)
        return self._recycled.clear() or bool(going)

    def written(self, name: str, size: int) -> None:
        """A new file is complete."""
        self._recycled.written(name, size)

    def settle(self, name: str) -> None:
        """A record knows the new file from now on."""
        self._young.discard(name)

    @contextmanager
    def _named(self) -> Iterator[str]:
        """The name of a new file, which is removed when the block fails."""
        name = secrets.token_hex(16)
        self._young.add(name)
        try:
            yield name
        except BaseException:
            self.remove(name)
            raise

    def path(self, name: str) -> Path:
        """Where a file is, or would be."""
        return self._folder / name

    def trouble(self, exc: OSError) -> StoreError:
        """What to raise when a file here cannot be written."""
        return disk_trouble(exc, self._folder)

    def sync_folder(self) -> None:
        """Have the names of new files on the disk itself."""
        sync(self._folder)

    def remove(self, name: str) -> None:
        """Remove a file. Whoever maps it goes on reading it."""
        if self._holders:
            self._held.append(name)
        else:
            self._maps.drop(name)
            if not self._recycled.put_back(name):
                self._remove(name)
        self._young.discard(name)

    def _remove(self, name: str) -> None:
        path = self._folder / name
        with suppress(OSError):  # it is swept at the next start
            if path.stat().st_size > _AT_ONCE:
                self._going.add(name)
                self._later(partial(self._unlink, name))
            else:
                path.unlink()

    def _unlink(self, name: str) -> None:
        with self._unlinking:  # who comes second finds its room free
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
        return (
            name in self._young
            or name in self._held
            or name in self._going
            or self._recycled.has(name)
        )

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
        file = _File(path, partial(self._recycled.seen, name))
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

    __slots__ = ("_asked", "_descriptor", "_path")

    def __init__(self, path: str, asked: Callable[[], None]) -> None:
        self._path = path
        self._asked = asked
        self._descriptor: int | None = None

    def opened(self) -> int | None:
        """``None``: no descriptors are left, or it is closed."""
        if self._descriptor is None and self._path:
            self._asked()
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
    folder: Path,
    *,
    durable: bool,
    recycle_bytes: int,
    later: Callable[[Callable[[], None]], None],
) -> Iterator[Blobs]:
    """The files of a folder, which is made if it is not there; see :class:`Blobs`.

    **Raises** :exc:`~spear_core.errors.StoreError`.
    """
    blobs = Blobs(folder, durable=durable, recycle_bytes=recycle_bytes, later=later)
    try:
        yield blobs
    finally:
        blobs.close()


def _has(size: int, stat: ObjectStat) -> str:
    return f"has {size} bytes instead of {stat.size}"
