"""The record of tasks on disk: what was accepted, what became of it.

A task that is journaled has a :class:`TaskEntry` (``Task.record``); on a node whose stores do not
last, none has, and nothing here is called. What callers are told is on disk by then: the
acceptance before the answer to an ``async`` call and before anything of the task begins, the end
before its result is given to anybody. That a guest is about to begin is on disk before it does,
unless it may run twice (``idempotent``).

A task that is *attached*, to a caller who waits for it and would be gone with the node, never runs
again in another one. So its input is not written, and its first steps when there is time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from logging import Logger

import attrs
import trio

from spear_core.api import (
    DeleteKey,
    MetadataChange,
    MetadataStore,
    ObjectStore,
    PutKey,
    TaskResult,
    TaskState,
)
from spear_core.errors import ObjectNotFoundError, SpearError
from spear_core.node._background import Background, open_background
from spear_core.node._failures import as_spear_error
from spear_core.node._hold import DeletionHold
from spear_core.node._store_writer import StoreWriter, Write
from spear_core.node._task import Task
from spear_core.node._task_records import (
    INPUTS,
    OUTPUTS,
    TASKS,
    Deadline,
    Place,
    TaskRecord,
    encode_task,
    holder,
    object_key,
)

__all__ = ["TaskEntry", "TaskJournal", "open_journal"]

_AGAIN_S = 1.0
_LAST_S = 10.0
"""How long the end of a node waits for the last records."""


class TaskJournal:
    """Makes the entries of tasks; made by :func:`open_journal`."""

    def __init__(
        self,
        store: MetadataStore,
        writer: StoreWriter,
        objects: Callable[[], Awaitable[ObjectStore]],
        *,
        background: Background,
        log: Logger,
        hold: DeletionHold,
    ) -> None:
        self.store = store
        self.writer = writer
        self.hold = hold
        self.objects = objects
        self.background = background
        self.log = log
        self.outputs: set[Write] = set()
        """Ends of tasks whose large output is on its way to the object store."""
        self._numbers = itertools.count(1)

    async def flushed(self) -> None:
        """Wait until nothing is waiting to be written, but for what the stores do not take."""
        for last in tuple(self.outputs):
            with suppress(SpearError):
                await last.wait()
        await self.writer.flushed()

    def admit(self, task: Task, *, attached: bool) -> None:
        """Begin the entry of a task that was just made.

        :param attached: it ends with its caller, who waits for it.
        """
        entry = TaskEntry(self, task, attached=attached, number=next(self._numbers))
        task.record = entry
        entry.accept()

    def resume(self, task: Task, record: TaskRecord) -> None:
        """Take up the entry of a task that an earlier run of the node had."""
        entry = TaskEntry(self, task, attached=record.attached, number=record.number)
        entry.input, entry.output = record.input, record.output
        task.record = entry

    def number_from(self, number: int) -> None:
        """The number of the next task."""
        self._numbers = itertools.count(number)


@attrs.define(eq=False)
class TaskEntry:
    """What is on disk of one task, or on its way there."""

    _journal: TaskJournal
    _task: Task = attrs.field(repr=False)
    attached: bool
    number: int
    input: Place = Place.NOWHERE
    output: Place = Place.NOWHERE
    _accepted: Write | None = None
    _last: Write | None = None
    _forgotten: bool = False
    _id: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._id = self._task.id

    # Acceptance ----------------------------------------------------------------------------------

    def accept(self) -> None:
        """Have the task written, and its input, if another run of the node could need it.

        For whoever waits for the acceptance, a failure is final: the task was not accepted.
        """
        task = self._task
        if self.attached:
            # Its caller is told nothing before its end: so nothing waits for this write, unless
            # the store is in trouble and would take the end as little.
            if self._journal.writer.failing is None:
                self._draft(self._task.state)
            else:
                self._accepted = self._submit([self._state()], keep=False)
            return
        self.input = Place.of(task.payload)
        if self.input is Place.OBJECT:
            self._accepted = self._journal.writer.promise(task.id, keep=False)
            self._journal.background.start_soon(self._put_input, self._accepted)
            return
        self._accepted = self._submit(self._with_input(), keep=False)

    def _with_input(self) -> list[MetadataChange]:
        changes: list[MetadataChange] = [self._state()]
        if self.input is Place.RECORD:
            key = INPUTS + self._task.id.encode()
            changes.append(PutKey(key=key, value=self._task.payload))
        return changes

    async def _put_input(self, accepted: Write) -> None:
        task = self._task
        try:
            await self._put_object("input", task.payload)
        except SpearError as error:
            accepted.tell(error)
            return
        if task.state.is_final:  # its caller went away
            await self._drop_objects()
            accepted.tell(None)
            return
        self._submit(self._with_input(), keep=False, promised=accepted)

    def on_disk(self, then: Callable[[SpearError | None], None]) -> None:
        """Call ``then`` once the acceptance is on disk, or with the reason why it cannot be."""
        accepted = self._accepted
        if accepted is None or accepted.done:
            then(None)
        else:
            accepted.then = then
            accepted.hurry()

    async def accepted(self) -> None:
        """Wait until the acceptance is on disk. **Raises** what the store said."""
        if self._accepted is not None and not self._accepted.done:
            try:
                await self._accepted.wait()
            except SpearError as error:
                raise _refusal(error) from error

    # What happens to it --------------------------------------------------------------------------

    async def begin(self) -> None:
        """An instance is there for the task: have that written before its guest begins.

        Waits for as long as the store cannot take it, within the task's deadline.
        """
        if self.attached:
            self._draft(TaskState.RUNNING)
            return
        write = self._submit([self._state(TaskState.RUNNING)])
        if not self._task.artifact.idempotent:
            await write.wait(patient=True)

    def retrying(self) -> None:
        """An attempt has failed and another follows."""
        self._submit([self._state()])

    def postponed(self) -> None:
        """Nothing of the task runs any more, and it is for the node's next start to go on."""
        self._submit([self._state()])

    def ended(self) -> None:
        """The task is final. :meth:`settled` waits until that is on disk."""
        result = self._task.result
        self.output = Place.of(result.output) if result is not None else Place.NOWHERE
        if result is not None and self.output is Place.OBJECT:
            self._last = self._journal.writer.promise(self._task.id, keep=True)
            self._journal.outputs.add(self._last)
            self._journal.background.start_soon(self._put_output, self._last, result)
            return
        self._submit(self._at_end())
        if self.input is Place.OBJECT:
            self._journal.background.start_soon(self._drop_input)

    def _at_end(self) -> list[MetadataChange]:
        task_id = self._task.id.encode()
        changes: list[MetadataChange] = [self._state()]
        if self.input is Place.RECORD:
            changes.append(DeleteKey(key=INPUTS + task_id))
        if self.output is Place.RECORD and self._task.result is not None:
            changes.append(PutKey(key=OUTPUTS + task_id, value=self._task.result.output))
        return changes

    async def _put_output(self, last: Write, result: TaskResult) -> None:
        while not self._forgotten:
            try:
                await self._put_object("output", result.output)
            except SpearError as error:
                last.tell(error)
                self._journal.log.error("task %s: its output: %s", self._id, error)
                await trio.sleep(_AGAIN_S)
            else:
                break
        self._journal.outputs.discard(last)
        if self._forgotten:
            await self._drop_objects()
            last.tell(None)
            return
        self._submit(self._at_end(), promised=last)
        if self.input is Place.OBJECT:
            await self._drop_input()

    async def settled(self) -> None:
        """Wait until what is known of the task is on disk.

        **Raises** what the store said, as long as it cannot be written; the node goes on trying.
        """
        if self._last is not None and not self._last.done:
            try:
                await self._last.wait()
            except SpearError as error:
                raise _not_written(self._id, error) from error

    def refused(self) -> None:
        """The acceptance was not written, so nothing is on disk but perhaps the input."""
        self._forgotten = True
        if self.input is Place.OBJECT:
            self._journal.background.start_soon(self._drop_objects)

    def forget(self) -> None:
        """The task is not kept any longer."""
        self._forgotten = True
        task_id = self._id.encode()
        changes: list[MetadataChange] = [DeleteKey(key=TASKS + task_id)]
        if self.input is Place.RECORD:
            changes.append(DeleteKey(key=INPUTS + task_id))
        if self.output is Place.RECORD:
            changes.append(DeleteKey(key=OUTPUTS + task_id))
        self._submit(changes)
        if Place.OBJECT in (self.input, self.output):
            self._journal.background.start_soon(self._drop_forgotten)
        # each would keep the other, with all that it has, until the garbage collector comes by
        del self._task

    async def gone(self) -> None:
        """Wait until what is known of the task, or that it is forgotten, is on disk; for as long
        as the store cannot take it."""
        if self._last is not None and not self._last.done:
            await self._last.wait(patient=True)

    # Writing -------------------------------------------------------------------------------------

    def _submit(
        self,
        changes: list[MetadataChange],
        *,
        keep: bool = True,
        promised: Write | None = None,
    ) -> Write:
        writer = self._journal.writer
        self._last = writer.submit(self._id, changes, keep=keep, promised=promised)
        return self._last

    def _draft(self, state: TaskState) -> None:
        """Have this state written when there is time, unless another one comes before that."""
        writer = self._journal.writer
        self._last = writer.draft(self._task.id, lambda: [self._state(state)])

    def _state(self, state: TaskState | None = None) -> PutKey:
        key = TASKS + self._task.id.encode()
        return PutKey(key=key, value=encode_task(self._record(state or self._task.state)))

    def _record(self, state: TaskState) -> TaskRecord:
        task = self._task
        final = state.is_final
        result = task.result if final else None  # a draft may be of a while ago
        if result is not None and result.output:
            result = attrs.evolve(result, output=b"")
        begins = state is TaskState.RUNNING and task.started_at is None
        return TaskRecord(
            number=self.number,
            artifact=task.artifact.ref,
            state=state,
            created_at=task.created_at,
            execution_id=task.execution_id,
            entry=task.entry,
            attached=self.attached,
            started_at=time.time() if begins else task.started_at,
            completed_at=task.completed_at if final else None,
            content_type=task.content_type,
            trace=task.trace,
            priority=task.priority,
            caller=task.caller,
            context=dict(task.context),
            parent=task.parent_task_id,
            detached=task.detached,
            depth=task.depth,
            attempt=task.attempt,
            instance_id=task.instance_id,
            failed_executions=task.failed_executions,
            key=task.same[1] if task.same is not None else None,
            digest=task.digest,
            deadline=None if final else Deadline.after(task.deadline - trio.current_time()),
            input=Place.NOWHERE if final else self.input,
            output=self.output,
            result=result,
        )

    # Objects -------------------------------------------------------------------------------------

    async def _put_object(self, what: str, value: bytes) -> None:
        key = object_key(self._id, what)
        try:
            objects = await self._journal.objects()
            await objects.put(key, value, hashed=False)
            await objects.add_ref(key, holder=holder(self._id))
        except Exception as raised:  # barrier: the store
            raise as_spear_error(raised, "the object store", self._journal.log) from raised

    async def _drop_input(self) -> None:
        """The input of a task that is final, once that is on disk."""
        if self._last is not None:
            await self._last.wait(patient=True)
        await self._delete_objects("input")

    async def _drop_objects(self) -> None:
        await self._delete_objects("input", "output")

    async def _drop_forgotten(self) -> None:
        """No record names an object that is not there, whenever the node is killed."""
        with suppress(SpearError):  # the record stays, and so do they
            await self.gone()
            await self._drop_objects()

    async def _delete_objects(self, *names: str) -> None:
        """What cannot be deleted now is swept when the node starts next."""
        await self._journal.hold.passed()
        try:
            objects = await self._journal.objects()
            for name in names:
                try:
                    await objects.delete(object_key(self._id, name))
                except ObjectNotFoundError:
                    continue
        except Exception as raised:  # barrier: the store
            error = as_spear_error(raised, "the object store", self._journal.log)
            self._journal.log.warning("task %s: its objects stay: %s", self._id, error)


def _refusal(error: SpearError) -> SpearError:
    return type(error)(
        f"the task was not accepted, for it cannot be written down: {error.message}",
        code=error.code,
        retryable=error.retryable,
    )


def _not_written(task_id: str, error: SpearError) -> SpearError:
    return type(error)(
        f"task {task_id} has ended, but that cannot be written down: "
        f"{error.message}; the node goes on trying, and `spear result {task_id}` gives the answer "
        "once it is",
        code=error.code,
        retryable=False,
    )


@asynccontextmanager
async def open_journal(
    store: MetadataStore,
    objects: Callable[[], Awaitable[ObjectStore]],
    log: Logger,
    *,
    hold: DeletionHold,
) -> AsyncIterator[TaskJournal]:
    """A journal. Leaving the block waits for what is still to be written.

    :param hold: keeps objects of tasks while it is held.
    """
    async with open_background() as background:
        writer = StoreWriter(store, log)
        background.start_soon(writer.run)
        journal = TaskJournal(store, writer, objects, background=background, log=log, hold=hold)
        try:
            yield journal
        finally:
            with trio.move_on_after(_LAST_S, shield=True) as waiting:
                await journal.flushed()
            if waiting.cancelled_caught or writer.trouble:
                log.error("the records of %d tasks were not written", writer.trouble)
