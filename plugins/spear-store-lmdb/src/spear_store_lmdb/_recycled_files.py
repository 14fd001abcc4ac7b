"""Files of values that nobody can see any more, for the next values."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from spear_core.stores import IdleSweep

from ._delayed import never_on_disk
from ._file_pages import FilePages, mapped_pages, write_over

__all__ = ["RecycledFiles"]

_LEAST = 512 << 10
"""Bytes of the smallest file: a new one of less costs little more than a new name."""

_MOST_KNOWN = 1000
"""Files of which it is known that nobody else has seen them; the oldest are on the disk by now."""

_CLOSED_AT_ONCE = 4 << 20
"""Bytes of a mapping that is given up on the spot, in a tenth of a millisecond."""

_MOST_MAPPED = 16
"""Files whose pages stay mapped: each has a descriptor."""

_SPARE = 8
"""How often the bytes of a file have to be free on the disk, that it may wait."""


class RecycledFiles:
    """Fills files of values that are gone with new ones, under new names.

    The pages of a new file take several times as long to get from the kernel as a value takes to
    copy. So a file that was removed waits for the next value of about its size, if

    * it was written by this process, which nobody has asked for its descriptor, and whose mappings
      of it are closed: pages of a file that was lent may be in a pipe or a socket, where nothing
      tells of them, and whoever reads them there would see what is written next;
    * it has one name: a backup's hard link is the same file;
    * it is still in memory alone, before it gets its new name and again when it is full. The disk
      learns of the new name, then, no later than of any byte. So after a power cut as well there is
      nothing under the old name, and nothing of the old value, or half of the new, under the new.

    Else it is removed, and the value gets a new file. A crash leaves what waits as files that no
    record knows, which are removed at the next start as always.

    All methods but :meth:`sweep_idle` are for any thread.

    :param most_bytes: what may wait at most; 0: nothing ever does.
    :param remove: removes a file for good.
    """

    def __init__(self, folder: Path, *, most_bytes: int, remove: Callable[[str], None]) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._remove = remove
        self._lock = threading.Lock()
        self._known: OrderedDict[str, int] = OrderedDict()
        """Bytes of those that nobody else has seen."""
        self._waiting: list[tuple[int, str, int]] = []
        """The turn in which each came, its name and size; the oldest first."""
        self._pages: OrderedDict[str, FilePages] = OrderedDict()
        """Of files that have been used again, to be written over once more."""
        self._bytes = 0
        self._turn = 0
        self._idle = IdleSweep()

    @property
    def waiting(self) -> int:
        """Bytes of what waits."""
        return self._bytes

    def has(self, name: str) -> bool:
        """Whether that file waits."""
        with self._lock:
            return any(name == each for _, each, _ in self._waiting)

    # ---- what comes

    def written(self, name: str, size: int) -> None:
        """A file is complete, and only who calls this has seen it."""
        if _LEAST <= size <= self._most_bytes:
            with self._lock:
                self._known[name] = size
                if len(self._known) > _MOST_KNOWN:
                    self._known.popitem(last=False)

    def seen(self, name: str) -> None:
        """Somebody else may see that file, from now on and for ever."""
        with self._lock:
            self._known.pop(name, None)
        self._forget_pages(name)

    def put_back(self, name: str) -> bool:
        """No record knows that file any more. Whether it waits now; else it is to be removed."""
        with self._lock:
            size = self._known.pop(name, 0)
        if not size or not self._is_worth_it(name, size):
            self._forget_pages(name)
            return False
        with self._lock:
            self._waiting.append((self._turn, name, size))
            self._bytes += size
            self._idle.waits()
        self._drop(self._beyond)
        return True

    def _is_worth_it(self, name: str, size: int) -> bool:
        """Whether nobody needs its room, and it could be used again now."""
        try:
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            disk = os.fstatvfs(descriptor)
            return disk.f_bavail * disk.f_frsize >= _SPARE * size and _untouched(descriptor, size)
        finally:
            os.close(descriptor)

    # ---- what goes

    def fill(self, name: str, value: memoryview) -> bool:
        """Make a file of that name with that value out of one that waits, if one does. Blocks.

        False: there is no such file, and a new one is needed.
        """
        found = self._taken(name, len(value))
        if found is None:
            return False
        old, size = found
        done = False
        try:
            done = self._overwrite(old, name, size, value)
        except OSError:  # whatever it was, the new file tells
            pass
        finally:
            if not done:
                self._forget_pages(old)
                self._unlink(name)
        if done:
            self.written(name, len(value))
        return done

    def _taken(self, name: str, size: int) -> tuple[str, int] | None:
        """The old name and the size of a file that waited, and has the new name now."""
        with self._lock:
            for place in range(len(self._waiting) - 1, -1, -1):
                _, old, there = self._waiting[place]
                if abs(there - size) <= size // 8:
                    del self._waiting[place]
                    self._bytes -= there
                    break
            else:
                return None
            with suppress(OSError):
                # within the lock: a file either waits, or is not there under its old name
                os.rename(self._folder / old, self._folder / name)
                return old, there
        self._forget_pages(old)
        self._unlink(old)
        return None

    def _overwrite(self, old: str, name: str, size: int, value: memoryview) -> bool:
        """Whether a file of that size has that value now, and nothing of it was ever on a disk."""
        descriptor = self._opened(name)
        pages = None
        try:
            if not _untouched(descriptor, size):
                return False
            if size > len(value):
                os.ftruncate(descriptor, len(value))
                size = len(value)
            pages = self._pages_of(old) or mapped_pages(descriptor, size)
            write_over(descriptor, size, value, pages)
            os.fchmod(descriptor, 0o400)
            if not _untouched(descriptor, len(value)):
                return False
            if pages is not None:
                self._keep_pages(name, pages)
                pages = None
            return True
        finally:
            os.close(descriptor)
            if pages is not None:
                pages.close()

    def _opened(self, name: str) -> int:
        path = self._folder / name
        path.chmod(0o600)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def clear(self) -> bool:
        """Remove all that waits, before this returns; whether there was any."""
        with self._lock:
            waiting, self._waiting, self._bytes = self._waiting, [], 0
        for _, name, _ in waiting:
            self._forget_pages(name)
            self._unlink(name)
        return bool(waiting)

    def close(self) -> None:
        """Keep nothing any more."""
        self.clear()
        for name in list(self._pages):
            self._forget_pages(name)

    async def sweep_idle(self, seconds: float) -> None:
        """Remove what has waited for so long, or up to twice that, until cancelled. Nothing
        happens, and no time passes, while nothing waits."""
        await self._idle.run(seconds, self._sweep)

    def _sweep(self) -> bool:
        """Remove what has waited since before the last call; whether anything is left."""
        turn = self._turn
        self._turn += 1
        self._drop(lambda: sum(each[0] < turn for each in self._waiting))
        return bool(self._waiting)

    def _beyond(self) -> int:
        """How many of the oldest have to go, so that no more is left than may be."""
        count, left = 0, self._bytes
        while left > self._most_bytes:
            left -= self._waiting[count][2]
            count += 1
        return count

    def _drop(self, count: Callable[[], int]) -> None:
        """Remove so many of the oldest."""
        with self._lock:
            most = count()
            dropped, self._waiting = self._waiting[:most], self._waiting[most:]
            self._bytes -= sum(size for _, _, size in dropped)
        for _, name, _ in dropped:
            self._forget_pages(name)
            self._remove(name)

    def _keep_pages(self, name: str, pages: FilePages) -> None:
        """Until the file is seen or removed, or others were used since."""
        oldest = None
        with self._lock:
            self._pages[name] = pages
            if len(self._pages) > _MOST_MAPPED:
                _, oldest = self._pages.popitem(last=False)
        if oldest is not None:
            oldest.close()

    def _pages_of(self, name: str) -> FilePages | None:
        """They are the caller's from now on."""
        with self._lock:
            return self._pages.pop(name, None)

    def _forget_pages(self, name: str) -> None:
        pages = self._pages_of(name)
        if pages is None:
            return
        if pages.size > _CLOSED_AT_ONCE:  # this may be trio's thread
            with suppress(RuntimeError):  # no more threads
                trio.lowlevel.start_thread_soon(pages.close, lambda result: None)
                return
        pages.close()

    def _unlink(self, name: str) -> None:
        with suppress(OSError):
            (self._folder / name).unlink()


def _untouched(descriptor: int, size: int) -> bool:
    """Whether a file has one name, that size, and no place on a disk."""
    status = os.fstat(descriptor)
    return status.st_nlink == 1 and status.st_size == size and never_on_disk(descriptor, size)
