"""Who has references to which objects of the store in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

__all__ = ["MemoryReferences"]


class MemoryReferences:
    """References by object, and by holder."""

    def __init__(self) -> None:
        self._of: dict[str, Counter[str]] = {}
        self._held: dict[str, set[str]] = {}

    def of(self, key: str) -> Mapping[str, int]:
        """Holder → how many; no entry is 0."""
        return self._of.get(key, {})

    def keys_of(self, holder: str) -> Sequence[str]:
        """The objects that a holder has references to, in order."""
        return sorted(self._held.get(holder, ()))

    def add(self, key: str, holder: str) -> None:
        """One more."""
        self._of.setdefault(key, Counter())[holder] += 1
        self._held.setdefault(holder, set()).add(key)

    def remove(self, key: str, holder: str, count: int) -> None:
        """So many less; there are as many."""
        refs = self._of[key]
        refs[holder] -= count
        if not refs[holder]:
            del refs[holder]
            self._forget(key, holder)

    def drop(self, key: str) -> None:
        """All of an object, which is gone."""
        for holder in self._of.pop(key, ()):
            self._forget(key, holder)

    def _forget(self, key: str, holder: str) -> None:
        self._held[holder].discard(key)
        if not self._held[holder]:
            del self._held[holder]
