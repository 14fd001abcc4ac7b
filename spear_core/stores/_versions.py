"""Versions that are not current any more, for as long as somebody can see them."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import attrs
import trio

from spear_core.errors import SnapshotExpiredError

__all__ = ["Picture", "Versions"]

T = TypeVar("T")

_OVERHEAD = 512
"""Bytes that an old version takes in memory whatever its value."""


@attrs.define(eq=False)
class Picture:
    """The objects at one revision; made by :meth:`Versions.open_picture`."""

    revision: int
    expired: bool = False
    closed: bool = False

    def check(self) -> None:
        """**Raises** :exc:`~spear_core.errors.SnapshotExpiredError`, and
        :exc:`trio.ClosedResourceError` after its block."""
        if self.closed:
            raise trio.ClosedResourceError("the block of this snapshot is over")
        if self.expired:
            raise SnapshotExpiredError(
                f"the snapshot of revision {self.revision} was ended: what it kept of old versions "
                f"went over the store's limit; take a new one"
            )


@attrs.define(eq=False)
class _Old(Generic[T]):
    key: str
    version: int
    written: int
    ended: int
    size: int
    item: T
    settled: bool
    """Whether the revision that ended it is known to be there, so that it may be dropped."""
    counted: bool = False

    def was_current(self, revision: int) -> bool:
        return self.written <= revision < self.ended


class Versions(Generic[T]):
    """Old versions of objects, kept by views and pictures.

    One thread may :meth:`note` and :meth:`open_picture` while another does all the rest.

    :param limit: bytes of old versions that pictures may keep; with more, the oldest one expires.
    :param drop: called with what nobody can see any more.
    """

    def __init__(self, *, limit: int, drop: Callable[[T], None] = lambda item: None) -> None:
        self._limit = limit
        self._drop = drop
        self._lock = threading.RLock()
        self._pictures: list[Picture] = []
        self._viewed: Counter[tuple[str, int]] = Counter()
        self._views: dict[tuple[str, int], T] = {}
        self._old: dict[tuple[str, int], _Old[T]] = {}
        self._of_key: dict[str, dict[int, _Old[T]]] = {}
        self._keys: list[str] = []
        self._counted = 0

    @property
    def idle(self) -> bool:
        """Whether nobody keeps or sees anything, so that what ends can be dropped untold."""
        return not (self._pictures or self._viewed or self._old)

    # ---- who keeps

    def open_picture(self, revision: int) -> Picture:
        """Keep what is current at that revision, from the next change on."""
        with self._lock:
            picture = Picture(revision)
            bisect.insort(self._pictures, picture, key=lambda one: one.revision)
            return picture

    def close_picture(self, picture: Picture) -> None:
        """Keep nothing for it any more."""
        with self._lock:
            picture.closed = True
            if picture in self._pictures:
                self._pictures.remove(picture)
                self._prune()

    @contextmanager
    def viewing(self, key: str, version: int, item: T) -> Iterator[None]:
        """Keep that version while the block lasts."""
        place = (key, version)
        with self._lock:
            self._viewed[place] += 1
            self._views[place] = item
        try:
            yield
        finally:
            with self._lock:
                self._viewed[place] -= 1
                if not self._viewed[place]:
                    del self._viewed[place], self._views[place]
                    self._look_at(place)

    # ---- what is kept

    def note(self, key: str, version: int, item: T, *, written: int, ended: int, size: int) -> None:
        """A change is about to end that version, perhaps; :meth:`supersede` says that it has."""
        if not self._pictures:
            return
        with self._lock:
            old = _Old(key, version, written, ended, size, item, settled=False)
            if any(old.was_current(picture.revision) for picture in self._pictures):
                self._add(old)

    def supersede(
        self, key: str, version: int, item: T, *, written: int, ended: int, size: int
    ) -> None:
        """That version is not current any more, from revision ``ended`` on: keep it or drop it."""
        with self._lock:
            self._add(_Old(key, version, written, ended, size, item, settled=True))
            self._look_at((key, version))
            while self._counted > self._limit and self._pictures:
                self._pictures.pop(0).expired = True
                self._prune()

    # ---- seeing

    def kept(self) -> list[T]:
        """Every old version that is kept."""
        with self._lock:
            return [old.item for old in self._old.values()]

    def find(self, key: str, version: int) -> T | None:
        """An old version that somebody keeps."""
        with self._lock:
            place = (key, version)
            old = self._old.get(place)
            return self._views.get(place) if old is None else old.item

    def at(self, key: str, revision: int) -> T | None:
        """What was current at the revision of an open picture, if it has been superseded since."""
        with self._lock:
            for old in self._of_key.get(key, {}).values():
                if old.was_current(revision):
                    return old.item
        return None

    def keys(self, prefix: str, after: str | None) -> Iterator[str]:
        """Keys that have old versions, ascending, from a prefix on and after a key."""
        with self._lock:
            start = bisect.bisect_left(self._keys, prefix)
            if after is not None:
                start = max(start, bisect.bisect_right(self._keys, after))
            keys = self._keys[start:]
        return itertools.takewhile(lambda key: key.startswith(prefix), keys)

    # ---- parts

    def _add(self, old: _Old[T]) -> None:
        place = (old.key, old.version)
        self._forget(place)
        self._old[place] = old
        if old.key not in self._of_key:
            self._of_key[old.key] = {}
            bisect.insort(self._keys, old.key)
        self._of_key[old.key][old.version] = old
        self._count(old)

    def _count(self, old: _Old[T]) -> bool:
        """Whether a picture needs it, and so its bytes count."""
        needed = any(old.was_current(picture.revision) for picture in self._pictures)
        if needed != old.counted:
            old.counted = needed
            size = old.size + len(old.key) + _OVERHEAD
            self._counted += size if needed else -size
        return needed

    def _look_at(self, place: tuple[str, int]) -> None:
        """Drop it unless somebody needs it."""
        old = self._old.get(place)
        if old is None or self._count(old) or self._viewed[place]:
            return
        self._forget(place)
        if old.settled:
            self._drop(old.item)

    def _forget(self, place: tuple[str, int]) -> None:
        old = self._old.pop(place, None)
        if old is None:
            return
        if old.counted:
            self._counted -= old.size + len(old.key) + _OVERHEAD
        versions = self._of_key[old.key]
        del versions[old.version]
        if not versions:
            del self._of_key[old.key]
            del self._keys[bisect.bisect_left(self._keys, old.key)]

    def _prune(self) -> None:
        for place in list(self._old):
            self._look_at(place)
