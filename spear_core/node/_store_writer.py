"""Writes many small things into the metadata store at once.

Whatever is ready at the same time goes into as few transactions as possible, and they go to disk
together; what comes in meanwhile is the next batch. So one write costs one flush when nothing else
is going on, and a small share of one under load. What nobody waits for takes its time: a task that
is over soon is written once, not at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from logging import Logger

import attrs
import trio

from spear_core.api import MetadataChange, MetadataStore
from spear_core.errors import (
    CompactedError,
    InvalidRequestError,
    SpearError,
    StoreFullError,
)
from spear_core.node._failures import as_spear_error
from spear_core.stores import MAX_CHANGES

__all__ = ["StoreWriter", "Write"]

_AT_LEISURE_S = 0.005
"""How long a write may wait that nobody waits for."""
_LAZY_S = 0.05
"""How long one may that will most likely be overtaken by the next of its owner."""
_AGAIN_S = 1.0
"""Until what could not be written is tried again."""
_HISTORY = 1_000
"""Revisions that stay readable. Nobody reads the past of tasks, and it costs room."""
_COMPACT_EVERY = 1_000


@attrs.define(eq=False)
class Write:
    """Changes that belong together, on their way to disk; made by :class:`StoreWriter`."""

    owner: str
    hurry: Callable[[], None] = attrs.field(repr=False)
    """Have it written soon: somebody waits."""
    keep: bool
    """Try again for as long as it fails; else it fails once and is given up."""
    changes: dict[bytes, MetadataChange] = attrs.field(factory=dict)
    drafted: Callable[[], Iterable[MetadataChange]] | None = None
    """Makes the changes, if none have come in their place by the time it is written."""
    done: bool = False
    error: SpearError | None = None
    """Why it is not on disk: for good, or until the next attempt if it is kept."""
    then: Callable[[SpearError | None], None] | None = None
    """Called once, when it is on disk or has been given up."""
    due: float = -math.inf
    """On trio's clock: until then it is left out of others' transactions."""
    older: list[Write] = attrs.field(factory=list)
    """Of the same owner, that failed and are told what becomes of this one."""
    _told: trio.Event | None = None

    async def wait(self, *, patient: bool = False) -> None:
        """Wait until it is on disk.

        :param patient: also through failures, of one that is kept.

        **Raises** :exc:`~spear_core.errors.StoreError` (or what else the store said): it is not,
        at present. **Cancellation**: changes nothing.
        """
        while not self.done:
            if self.error is not None and not (patient and self.keep):
                raise type(self.error)(
                    self.error.message, code=self.error.code, retryable=self.error.retryable
                ) from self.error
            if self._told is None:
                self._told = trio.Event()
            self.due = -math.inf
            self.hurry()
            await self._told.wait()

    def make(self) -> None:
        """Have the changes of a draft among its own."""
        if self.drafted is not None:
            drafted, self.drafted = self.drafted, None
            self.changes.update((change.key, change) for change in drafted())

    def tell(self, error: SpearError | None) -> None:
        """What has become of it."""
        self.error = error
        self.done = error is None
        if self.done:
            self.changes = {}  # a kept task need not keep its input and output twice
        for write in self.older:
            write.tell(error)
        if self._told is not None:
            self._told.set()
            self._told = None
        if self.then is not None and (self.done or not self.keep):
            then, self.then = self.then, None
            then(error)


class StoreWriter:
    """The one who writes; :meth:`run` does it. Writes of one owner reach the disk in order."""

    def __init__(self, store: MetadataStore, log: Logger) -> None:
        self._store = store
        self._log = log
        self._waiting: dict[str, Write] = {}
        self._stuck: dict[str, Write] = {}
        """Kept ones that have failed; the next attempt takes them with it."""
        self._news = trio.Event()
        self._hurry = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        self._revision = 0
        """The last that is known."""
        self._compacted: int | None = None
        """When it was, last."""

        self.failing: SpearError | None = None
        """Why the last write failed; ``None``: it did not."""

    @property
    def trouble(self) -> int:
        """How many writes wait for the store to take them again."""
        return len(self._stuck)

    def promise(self, owner: str, *, keep: bool) -> Write:
        """A write for later (:meth:`submit`), that can be waited for now."""
        return Write(owner, self._hurry_up, keep)

    def submit(
        self,
        owner: str,
        changes: Iterable[MetadataChange],
        *,
        keep: bool = True,
        promised: Write | None = None,
    ) -> Write:
        """Have changes written. One of the same owner that has not begun takes them along.

        :param promised: what :meth:`promise` gave.
        """
        write = self._waiting.get(owner) or self._stuck.pop(owner, None)
        if write is None:
            write = promised if promised is not None else self.promise(owner, keep=keep)
        elif promised is not None:
            write.older.append(promised)
        write.due = -math.inf
        write.drafted = None
        write.keep = write.keep or keep
        for change in changes:
            write.changes[change.key] = change
        self._wait(write)
        return write

    def draft(self, owner: str, make: Callable[[], Iterable[MetadataChange]]) -> Write:
        """Have changes written at leisure, and made only then. What is submitted of the same owner
        before that goes in their place, so it has to say all that they would."""
        write = self._waiting.get(owner) or self._stuck.pop(owner, None)
        if write is None:
            write = self.promise(owner, keep=True)
            write.due = trio.current_time() + _LAZY_S
        write.keep = True
        write.drafted = make
        self._wait(write)
        return write

    def _wait(self, write: Write) -> None:
        self._waiting[write.owner] = write
        self._news.set()
        if self._idle.is_set():
            self._idle = trio.Event()

    async def flushed(self) -> None:
        """Wait until nothing is waiting to be written, but for what is stuck."""
        for write in self._waiting.values():
            write.due = -math.inf
        self._hurry_up()
        await self._idle.wait()

    def _hurry_up(self) -> None:
        self._hurry.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            if not self._waiting:
                self._idle.set()
                with trio.move_on_after(_AGAIN_S if self._stuck else float("inf")):
                    await self._news.wait()
            self._news = trio.Event()
            if self._waiting:
                first = min(write.due for write in self._waiting.values())
                with trio.move_on_at(max(trio.current_time() + _AT_LEISURE_S, first)):
                    await self._hurry.wait()
            self._hurry = trio.Event()
            if self._stuck:
                await self._try_again()
            now = trio.current_time()
            if taken := [write for write in self._waiting.values() if write.due <= now]:
                for write in taken:
                    del self._waiting[write.owner]
                    write.make()
                await self._write_out(taken)

    async def _write_out(self, writes: Sequence[Write]) -> None:
        chunks: list[list[Write]] = [[]]
        size = 0
        for write in writes:
            if size + len(write.changes) > MAX_CHANGES:
                chunks.append([])
                size = 0
            chunks[-1].append(write)
            size += len(write.changes)
        if len(chunks) == 1:
            await self._transact(chunks[0])
            return
        async with trio.open_nursery() as nursery:
            for chunk in chunks:
                nursery.start_soon(self._transact, chunk)

    async def _transact(self, writes: Sequence[Write]) -> None:
        changes = [change for write in writes for change in write.changes.values()]
        try:
            try:
                result = await self._store.transact(changes)
            except StoreFullError:
                await self._make_room()
                result = await self._store.transact(changes)
        except Exception as raised:  # barrier: the store
            error = as_spear_error(raised, "the metadata store", self._log)
            if isinstance(error, InvalidRequestError) and len(writes) > 1:
                for write in writes:  # one of them is at fault, not the store
                    await self._transact([write])
                return
            for write in writes:
                self._failed(write, error)
            return
        self.failing = None
        self._revision = max(self._revision, result.revision)
        for write in writes:
            write.tell(None)
        if self._compacted is None:
            self._compacted = self._revision
        elif self._revision - self._compacted >= _COMPACT_EVERY:
            await self._compact(self._revision - _HISTORY)

    def _failed(self, write: Write, error: SpearError) -> None:
        self.failing = error
        if write.keep and not isinstance(error, InvalidRequestError):
            if not self._stuck:
                self._log.error("what becomes of tasks cannot be written down: %s", error)
            newer = self._waiting.get(write.owner)
            if newer is not None:  # submitted in the meantime: it says more
                newer.changes = {**write.changes, **newer.changes}
                newer.keep = True
                newer.older.append(write)
                write.tell(error)
                return
            self._stuck[write.owner] = write
        else:
            write.keep = False
            if isinstance(error, InvalidRequestError):
                self._log.error("a record cannot be written, and is given up: %s", error)
        write.tell(error)

    async def _try_again(self) -> None:
        """One by one: what is small, or makes room, may go through when others do not."""
        failed = False
        for owner, write in list(self._stuck.items()):
            if self._stuck.pop(owner, None) is None:
                continue
            await self._transact([write])
            failed = failed or owner in self._stuck
            if failed:
                break
        if not self._stuck:
            self._log.info("what becomes of tasks is written down again")

    async def _make_room(self) -> None:
        """Forget all of the past, if there is any that this node knows of."""
        if self._revision:
            await self._compact(self._revision)

    async def _compact(self, revision: int) -> None:
        self._compacted = self._revision
        try:
            await self._store.compact(revision)
        except (CompactedError, InvalidRequestError):
            pass
        except Exception as raised:  # barrier: the store
            error = as_spear_error(raised, "the metadata store", self._log)
            self._log.warning("the metadata store's history cannot be compacted: %s", error)
