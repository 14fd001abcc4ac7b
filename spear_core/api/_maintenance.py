"""What operators do with a store: backups and checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import attrs

__all__ = ["StoreBackup", "StoreMaintenance", "StoreProblem", "StoreReport"]


@attrs.frozen(kw_only=True)
class StoreBackup:
    """What is in a backup."""

    revision: int
    """The store's revision that it shows."""
    records: int
    """Objects, or keys."""
    bytes: int
    """Of all its files."""


@attrs.frozen(kw_only=True)
class StoreProblem:
    """Something in a store that is not as it should be."""

    where: str
    """The object, key or file, in words."""
    what: str
    """What is wrong, and with a repair, what was done about it."""
    lost: bool = False
    """Whether data is gone: only a backup has it. Else it is an index or a count that can be made
    anew, or a file that nobody needs."""
    repaired: bool = False


@attrs.frozen(kw_only=True)
class StoreReport:
    """What a check has found."""

    records: int
    """Objects, or keys, that were looked at."""
    bytes: int
    """Of values that were compared with their checksums."""
    problems: tuple[StoreProblem, ...] = ()
    """At most 1,000 of them."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or nothing is any more."""
        return all(problem.repaired for problem in self.problems)


class StoreMaintenance(ABC):
    """What a store may be besides: one whose data outlives it.

    An :class:`ObjectStore` or :class:`MetadataStore` that can do this is an instance of it, too.
    The way back from a backup is ``restore`` of its spec.
    """

    @abstractmethod
    async def backup(self, directory: Path) -> StoreBackup:
        """Write all that is in the store at one revision to a new directory, while it is in use.

        It is on the disk itself, and complete, when the directory is there. Large values may be
        hard links to the store's own files, which never change: a backup for another day belongs
        on another disk.

        :param directory: does not exist yet; its parent does.

        **Raises** :exc:`~spear_core.errors.InvalidRequestError` when it exists,
        :exc:`~spear_core.errors.StoreFullError` when the disk is full. **Cancellation**: waits for
        the file that is being written; nothing is left then, as when it raises.
        """

    @abstractmethod
    async def check(self, *, repair: bool = False) -> StoreReport:
        """Compare everything with everything: records with their checksums, indexes, counts and
        files, values with their hashes. Takes as long as reading all of it.

        :param repair: make indexes and counts anew from the records, remove files that nobody
            needs, and remove what is damaged beyond repair (``lost``). Nobody else writes
            meanwhile.
        """
