"""Checks of what is in an environment: rounds of looking, and of putting right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from spear_core.api import StoreProblem, StoreReport

from ._transaction import Transaction

__all__ = ["Check", "Found"]

_MOST = 1000
"""Problems that are told."""

_OFTEN = 1000
"""Records between two looks at whether to go on."""

_ROUNDS = 10
"""What is removed may leave something behind that the next round finds."""


@attrs.frozen
class Found:
    """A problem, and how to put it right within the transaction it was found in."""

    where: str
    what: str
    fix: Callable[[], None]
    lost: bool = False


class Check(ABC):
    """One check of one environment, in a transaction of the caller's.

    :param pause: called often: raises when nobody wants to know any more.
    """

    def __init__(
        self, txn: Transaction, databases: Mapping[str, Any], pause: Callable[[], None]
    ) -> None:
        self.txn = txn
        self.databases = databases
        self.records = 0
        self.bytes = 0
        self._pause = pause
        self._looks = 0
        self._found: list[Found] = []

    @abstractmethod
    def look(self) -> None:
        """Go through everything once, and call :meth:`found` for what is wrong."""

    def found(self, where: str, what: str, fix: Callable[[], None], *, lost: bool = False) -> None:
        """Something is wrong."""
        self._found.append(Found(where, what, fix, lost))

    def go_on(self) -> None:
        """Called for each record."""
        self._looks += 1
        if self._looks % _OFTEN == 0:
            self._pause()

    def report(self) -> StoreReport:
        """Look, and say what is wrong."""
        self.look()
        return self._told(self._found, repaired=False)

    def repair(self) -> StoreReport:
        """Look and put right, until nothing is wrong. For a write transaction."""
        every: list[Found] = []
        for _ in range(_ROUNDS):
            self._found = []
            self.records = self.bytes = 0
            self.look()
            if not self._found:
                return self._told(every, repaired=True)
            for found in self._found:
                found.fix()
            every += self._found
        return self._told(self._found, repaired=False)

    def _told(self, found: list[Found], *, repaired: bool) -> StoreReport:
        problems = tuple(
            StoreProblem(where=one.where, what=one.what, lost=one.lost, repaired=repaired)
            for one in found[:_MOST]
        )
        return StoreReport(records=self.records, bytes=self.bytes, problems=problems)

    # ---- parts

    def number(self, name: bytes) -> int:
        """A number of the store's; what is none counts as 0."""
        try:
            return int(self.txn.get(name, b"0", db=self.databases["meta"]))
        except ValueError:
            return 0

    def check_number(
        self, name: bytes, *, least: int | None = None, exact: int | None = None
    ) -> None:
        """It is what was counted, or not below it."""
        found = self.number(name)
        if found == exact or (least is not None and found >= least):
            return
        right = least if exact is None else exact
        assert right is not None
        self.found(
            f"the number {name.decode()!r}",
            f"is {found}, and should be {right}",
            lambda: self.put("meta", name, b"%d" % right),
        )

    def put(self, name: str, key: bytes, value: bytes) -> None:
        self.txn.put(key, value, db=self.databases[name])

    def delete(self, name: str, key: bytes, value: bytes = b"") -> None:
        self.txn.delete(key, value, db=self.databases[name])

    def get(self, name: str, key: bytes) -> bytes | None:
        return self.txn.get(key, db=self.databases[name])
