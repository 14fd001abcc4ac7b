"""What tasks have to do with objects: inputs that are objects, large results, references."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVarTuple

import attrs
import trio

from spear_core.api import (
    NODE_OBJECTS,
    ExecutionResponse,
    InvokeRequest,
    ObjectStat,
    SpearletConfig,
    TaskInfo,
)
from spear_core.errors import InvalidRequestError, ObjectNotFoundError
from spear_core.node._background import Background, open_background
from spear_core.node._failures import as_spear_error
from spear_core.node._hold import DeletionHold
from spear_core.node._objects import StoreSource
from spear_core.node._scoped_objects import Scope, ScopedObjects
from spear_core.node._task import Task

Ts = TypeVarTuple("Ts")

__all__ = ["RESULTS", "TaskObjects", "open_task_objects", "result_key", "task_holder"]

RESULTS = f"{NODE_OBJECTS}spear/results/"
"""Below it, each large result under its task's id."""

_LEASE_S = 600.0
"""A holder's references stay so long after the node that took them has died."""
_RENEW_S = 150.0
_COPY_INLINE = 1 << 20
_LAST_RELEASES_S = 5.0
_DEFAULT_TYPE = InvokeRequest(function="").content_type


def task_holder(task_id: str) -> str:
    """In whose name a task holds references."""
    return f"task/{task_id}"


def result_key(task_id: str) -> str:
    """Where the large result of a task lies."""
    return f"{RESULTS}{task_id}"


def _result_holder(task_id: str) -> str:
    """Who keeps it: the task, beyond its end."""
    return f"{task_holder(task_id)}/result"


class TaskObjects:
    """The objects of one node's tasks; made by :func:`open_task_objects`."""

    def __init__(
        self,
        store: StoreSource,
        config: SpearletConfig,
        *,
        background: Background,
        log: logging.Logger,
    ) -> None:
        self._store = store
        self._config = config
        self._background = background
        self._log = log
        self.hold = DeletionHold()
        """Keeps inputs and outputs that belong to records."""
        self._holding: set[str] = set()
        self._renewing = False
        self._under_way = 0
        self._idle = trio.lowlevel.ParkingLot()

    def reconfigure(self, config: SpearletConfig) -> None:
        """Take other limits."""
        self._config = config

    # ---- inputs

    async def with_input(self, request: InvokeRequest) -> InvokeRequest:
        """The request with its input object's bytes as payload, as they are now.

        :raises ObjectNotFoundError: there is none. :raises InvalidRequestError: there is a payload
            as well, or it is larger than an input may be.
        """
        key = request.input_object
        if request.payload:
            raise InvalidRequestError("input_object: the request has a payload as well")
        if key.startswith("/"):
            raise InvalidRequestError(f"input_object: write the key without a '/' before it: {key}")
        most = self._config.execution.max_input_bytes
        async with (await self._store()).open(key) as view:
            stat = view.stat
            if stat.size > most:
                raise InvalidRequestError(
                    f"object {key!r} has {stat.size} bytes, and an input may have {most} "
                    "(execution.max_input_bytes); give the function the key instead, and let it "
                    "read the object itself (ctx.objects)"
                )
            if stat.size <= _COPY_INLINE:
                payload = bytes(view.data)
            else:
                payload = await trio.to_thread.run_sync(bytes, view.data)
        content_type = request.content_type
        if content_type == _DEFAULT_TYPE:
            content_type = stat.content_type
        return attrs.evolve(request, payload=payload, content_type=content_type)

    def hold_input(self, task: Task, key: str) -> None:
        """Take a reference on a task's input until the task ends, where it lives by references.

        One that nobody refers to stays until somebody deletes it; the end of a task must not.
        """
        self._later(self._hold_input, task, key)

    async def _hold_input(self, task: Task, key: str) -> None:
        store = await self._store()
        try:
            if (await store.stat(key)).refs:
                async with self._taking(task):
                    await store.add_ref(key, holder=task_holder(task.id))
        except ObjectNotFoundError:
            pass  # it has just gone, and the task has its bytes

    # ---- results

    @property
    def most_inline(self) -> int:
        """Bytes of output that stay with the task."""
        return self._config.execution.inline_output_bytes

    async def keep_output(self, task: Task, response: ExecutionResponse) -> ObjectStat | None:
        """Put a large output where :func:`result_key` says, for as long as the task is kept.

        ``None``: that was not possible, and the output has to stay with the task.
        """
        key, holder = result_key(task.id), _result_holder(task.id)
        whole = False
        try:
            store = await self._store()
            stat = await store.put(
                key, response.payload, content_type=response.content_type, hashed=False
            )
            stat = await store.add_ref(key, holder=holder)
            whole = True
        except Exception as raised:  # barrier: the store
            error = as_spear_error(raised, "the object store", self._log)
            self._log.warning("the output of task %s stays in memory: %s", task.id, error)
            return None
        finally:
            if not whole:
                self.drop_output(task.id)
        return stat

    def drop_output(
        self, task_id: str, *, after: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """The task is forgotten, and so is its result.

        :param after: waits until no record names it any more.
        """
        self._later(self._release_output, task_id, after)

    async def _release_output(
        self, task_id: str, after: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        if after is not None:
            await after()
        await self.hold.passed()
        store = await self._store()
        await store.release(_result_holder(task_id))
        with suppress(ObjectNotFoundError):  # as it should be
            await store.delete(result_key(task_id))

    def sweep(self, known: Container[str]) -> None:
        """Drop the results of tasks that an earlier run of the node had, and that are not known
        any more; in the background."""
        self._later(self._sweep, known)

    async def _sweep(self, known: Container[str]) -> None:
        store, after, count = await self._store(), None, 0
        while True:
            page = await store.list(RESULTS, after=after)
            for stat in page.objects:
                task_id = stat.key.removeprefix(RESULTS)
                if task_id not in known:
                    await self._release_output(task_id)
                    count += 1
            after = page.next_key
            if after is None:
                break
        if count:
            self._log.info("%d results of tasks that are not kept any more are gone", count)

    async def with_output(self, task: TaskInfo) -> TaskInfo:
        """The task with its output in it, wherever that lies.

        :raises ObjectNotFoundError: the task was forgotten meanwhile.
        """
        result = task.result
        if result is None or not result.object_key:
            return task
        _, output = await (await self._store()).get(result.object_key)
        return attrs.evolve(task, result=attrs.evolve(result, output=output))

    # ---- references

    def scope(self, task: Task) -> Scope:
        """What a task may touch."""
        return Scope(task.artifact.name, task.artifact.objects, task.id)

    def scoped(self, task: Task) -> ScopedObjects:
        """The store as this task may see it."""
        return ScopedObjects(
            self._store,
            self.scope(task),
            holder=task_holder(task.id),
            holding=partial(self._taking, task),
        )

    @asynccontextmanager
    async def _taking(self, task: Task) -> AsyncIterator[None]:
        """While a reference is taken in a task's name."""
        if task.id not in self._holding:
            await (await self._store()).keep_alive(task_holder(task.id), _LEASE_S)
            self._holding.add(task.id)
            if not self._renewing:
                self._renewing = True
                self._background.start_soon(self._renew)
        try:
            yield
        finally:
            if task.state.is_final:  # it may have come too late for ended()
                self._holding.add(task.id)
                self.ended(task)

    async def _renew(self) -> None:
        """Say that this node lives, for ever."""
        while True:
            await trio.sleep(_RENEW_S)
            for task_id in list(self._holding):
                try:
                    await (await self._store()).keep_alive(task_holder(task_id), _LEASE_S)
                except Exception as raised:  # barrier: the store
                    error = as_spear_error(raised, "the object store", self._log)
                    self._log.warning("the references of task %s are at risk: %s", task_id, error)

    def ended(self, task: Task) -> None:
        """Let go of what a task holds."""
        if task.id in self._holding:
            self._holding.discard(task.id)
            self._later(self._release, task_holder(task.id))

    async def _release(self, holder: str) -> None:
        await (await self._store()).release(holder)

    # ---- parts

    def _later(self, function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        self._under_way += 1
        self._background.start_soon(self._do, function, args)

    async def _do(self, function: Callable[[*Ts], Awaitable[None]], args: tuple[*Ts]) -> None:
        try:
            await function(*args)
        except Exception as raised:  # barrier: the store
            error = as_spear_error(raised, "the object store", self._log)
            self._log.warning("the object store does not take what a task is done with: %s", error)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.unpark_all()

    async def wait_idle(self) -> None:
        """Wait until everything that was to be let go is."""
        while self._under_way:
            await self._idle.park()


@asynccontextmanager
async def open_task_objects(
    store: StoreSource, config: SpearletConfig, *, log: logging.Logger
) -> AsyncIterator[TaskObjects]:
    """The objects of a node's tasks; at its end, what ended tasks held is let go."""
    async with open_background() as background:
        objects = TaskObjects(store, config, background=background, log=log)
        try:
            yield objects
        finally:
            with trio.move_on_after(_LAST_RELEASES_S, shield=True):
                await objects.wait_idle()
