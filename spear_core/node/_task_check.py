"""Tasks and what belongs to them: records, inputs, outputs, results, references."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container

from spear_core.api import KeyValue, MetadataStore, ObjectStat, ObjectStore
from spear_core.errors import ObjectNotFoundError, StoreCorruptError
from spear_core.node._finding import Finding
from spear_core.node._task_objects import RESULTS, result_key, task_holder
from spear_core.node._task_records import (
    INPUTS,
    OBJECTS,
    OUTPUTS,
    TASKS,
    Place,
    TaskRecord,
    decode_task,
    holder,
    object_key,
)

__all__ = ["check_tasks", "every_key"]

_TASK = f"{task_holder('')}"


async def every_key(store: MetadataStore, prefix: bytes) -> AsyncIterator[KeyValue]:
    """Every key that begins so, as of one revision."""
    page = await store.range(prefix)
    while True:
        for item in page.items:
            yield item
        if page.next_key is None:
            return
        page = await store.range(prefix, after=page.next_key, revision=page.revision)


async def _every_object(store: ObjectStore, prefix: str) -> AsyncIterator[ObjectStat]:
    page = await store.list(prefix)
    while True:
        for stat in page.objects:
            yield stat
        if page.next_key is None:
            return
        page = await store.list(prefix, after=page.next_key)


async def check_tasks(
    metadata: MetadataStore, objects: ObjectStore, *, deployed: Container[str]
) -> list[Finding]:
    """Compare every task with what it says that it has, and everything with its task.

    Nobody else uses the stores meanwhile.

    :param deployed: every ``name@version`` that is there.
    """
    check = _TaskCheck(metadata, objects)
    await check.read_records()
    for task_id, record in check.records.items():
        await check.look_at(task_id, record)
        if not record.state.is_final and record.artifact not in deployed:
            text = f"is to run {record.artifact}, which is not deployed"
            check.findings.append(Finding(f"task {task_id}", text))
    await check.look_at_keys()
    await check.look_at_values(INPUTS, "input")
    await check.look_at_values(OUTPUTS, "output")
    await check.look_at_objects()
    return check.findings


class _TaskCheck:
    def __init__(self, metadata: MetadataStore, objects: ObjectStore) -> None:
        self._metadata = metadata
        self._objects = objects
        self.records: dict[str, TaskRecord] = {}
        self._unreadable: set[str] = set()
        self.findings: list[Finding] = []

    async def read_records(self) -> None:
        async for item in every_key(self._metadata, TASKS):
            task_id = item.key[len(TASKS) :].decode(errors="replace")
            try:
                self.records[task_id] = decode_task(item.key, item.value)
            except StoreCorruptError as error:
                self._unreadable.add(task_id)
                self.findings.append(Finding(f"task {task_id}", error.message, lost=True))

    # What a record says that there is ------------------------------------------------------------

    async def look_at(self, task_id: str, record: TaskRecord) -> None:
        if record.input is not Place.NOWHERE:
            await self._look_for(task_id, "input", record.input)
        if record.output is not Place.NOWHERE:
            await self._look_for(task_id, "output", record.output)
        result = record.result
        if result is None or not result.object_key:
            return
        if result.object_key != result_key(task_id):
            text = f"says that its result is the object {result.object_key!r}"
            self.findings.append(Finding(f"task {task_id}", text, lost=True))
            return
        await self._look_for_object(
            task_id,
            "result",
            result.object_key,
            result.object_size,
            f"{task_holder(task_id)}/result",
        )

    async def _look_for(self, task_id: str, what: str, place: Place) -> None:
        if place is Place.OBJECT:
            await self._look_for_object(
                task_id, what, object_key(task_id, what), None, holder(task_id)
            )
            return
        prefix = INPUTS if what == "input" else OUTPUTS
        if await self._metadata.get(prefix + task_id.encode()) is None:
            self.findings.append(
                Finding(f"task {task_id}", f"its {what} is missing from the metadata", lost=True)
            )

    async def _look_for_object(
        self, task_id: str, what: str, key: str, size: int | None, keeper: str
    ) -> None:
        where = f"task {task_id}"
        try:
            stat = await self._objects.stat(key)
        except ObjectNotFoundError:
            text = f"its {what}, the object {key!r}, is missing"
            self.findings.append(Finding(where, text, lost=True))
            return
        if size is not None and stat.size != size:
            text = f"its {what}, the object {key!r}, has {stat.size} bytes instead of {size}"
            self.findings.append(Finding(where, text, lost=True))
        if not any(each.name == keeper for each in await self._objects.holders(key)):

            async def hold() -> None:
                await self._objects.add_ref(key, holder=keeper)

            text = f"does not hold its {what}, the object {key!r}, which can be collected"
            self.findings.append(Finding(where, text, repair=hold))

    async def look_at_keys(self) -> None:
        """No two tasks have the same idempotency key of the same caller."""
        seen: dict[tuple[str, str], str] = {}
        for task_id, record in sorted(self.records.items(), key=lambda item: item[1].number):
            if record.key is None:
                continue
            same = (record.caller, record.key)
            if same in seen:
                text = f"has the idempotency key {record.key!r} of task {seen[same]}"
                self.findings.append(Finding(f"task {task_id}", text))
            seen.setdefault(same, task_id)

    # What is there, and belongs to a record ------------------------------------------------------

    async def look_at_values(self, prefix: bytes, what: str) -> None:
        async for item in every_key(self._metadata, prefix):
            task_id = item.key[len(prefix) :].decode(errors="replace")
            if self._has(task_id, what, Place.RECORD):
                continue

            async def delete(key: bytes = item.key) -> None:
                await self._metadata.delete(key)

            text = f"belongs to {self._whose(task_id)}"
            self.findings.append(Finding(f"the {what} of task {task_id}", text, repair=delete))

    async def look_at_objects(self) -> None:
        async for stat in _every_object(self._objects, ""):
            if stat.key.startswith(OBJECTS):
                task_id, _, what = stat.key.removeprefix(OBJECTS).partition("/")
                kept = self._has(task_id, what, Place.OBJECT)
            elif stat.key.startswith(RESULTS):
                task_id = stat.key.removeprefix(RESULTS)
                kept = self._has_result(task_id)
            else:
                task_id, kept = "", True
            if not kept:
                self._found_stray(stat.key, task_id)
            elif stat.refs:
                await self._look_at_holders(stat.key)

    def _found_stray(self, key: str, task_id: str) -> None:
        async def delete() -> None:
            await self._objects.delete(key)

        text = f"belongs to {self._whose(task_id)}"
        self.findings.append(Finding(f"object {key!r}", text, repair=delete, expected=True))

    async def _look_at_holders(self, key: str) -> None:
        for each in await self._objects.holders(key):
            task_id, _, part = each.name.removeprefix(_TASK).partition("/")
            if not each.name.startswith(_TASK) or task_id in self._unreadable:
                continue
            record = self.records.get(task_id)
            if record is not None and (part or not record.state.is_final):
                continue

            async def let_go(name: str = each.name, count: int = each.refs) -> None:
                for _ in range(count):
                    await self._objects.remove_ref(key, holder=name)

            text = f"is held by {each.name!r}, which is {self._whose(task_id)}"
            self.findings.append(Finding(f"object {key!r}", text, repair=let_go, expected=True))

    def _has(self, task_id: str, what: str, place: Place) -> bool:
        """Whether a task has that there, or is about to."""
        record = self.records.get(task_id)
        if record is None:
            return task_id in self._unreadable
        if what == "input":
            return record.input is place
        if not record.state.is_final:
            return what == "output" and place is Place.OBJECT  # on its way when the node ended
        return what == "output" and record.output is place

    def _has_result(self, task_id: str) -> bool:
        record = self.records.get(task_id)
        if record is None:
            return task_id in self._unreadable
        if not record.state.is_final:
            return True
        return record.result is not None and record.result.object_key == result_key(task_id)

    def _whose(self, task_id: str) -> str:
        record = self.records.get(task_id)
        return "no task" if record is None else f"a task that is {record.state.value} without it"
