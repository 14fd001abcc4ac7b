"""From a request to a task and its answer: called and waited for, sent off, streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from spear_core.api import (
    Capability,
    ExecutionMode,
    InvokeRequest,
    InvokeResponse,
    InvokeStream,
    SpearletConfig,
    TaskState,
)
from spear_core.errors import InvalidRequestError, NodeStoppingError, UnsupportedModeError
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._executor import Executor
from spear_core.node._journal import TaskJournal
from spear_core.node._request_checks import check_depth, check_sizes, timeout_of
from spear_core.node._services import Services
from spear_core.node._streams import TaskStream, open_task_stream
from spear_core.node._task import Task
from spear_core.node._task_objects import TaskObjects
from spear_core.node._task_table import STATUS_ENDPOINT, TaskTable
from spear_core.node._tracing import Tracing

__all__ = ["Invocations", "wait_settled"]


class Invocations:
    """Takes requests, has the executor run them, and answers.

    :param objects: where large inputs are; ``None``: the node has no objects.
    """

    def __init__(
        self,
        services: Services,
        *,
        artifacts: ArtifactStore,
        tasks: TaskTable,
        executor: Executor,
        config: SpearletConfig,
        tracing: Tracing | None = None,
        journal: TaskJournal | None = None,
        objects: TaskObjects | None = None,
    ) -> None:
        self._services = services
        self._artifacts = artifacts
        self._tasks = tasks
        self._executor = executor
        self._config = config
        self._tracing = tracing
        self._journal = journal
        self._task_objects = objects
        self._stopping = False

    def reconfigure(self, config: SpearletConfig) -> None:
        """Take new settings, for the requests that come from now on."""
        self._config = config

    def stop_accepting(self) -> None:
        """Refuse what comes from now on."""
        self._stopping = True

    def refuse_when_stopping(self) -> None:
        """**Raises** :exc:`~spear_core.errors.NodeStoppingError` after :meth:`stop_accepting`."""
        if self._stopping:
            raise NodeStoppingError("the node is shutting down and takes no new work")

    async def invoke(self, request: InvokeRequest) -> InvokeResponse:
        """As :meth:`spear_core.api.NodeApi.invoke`."""
        if request.mode is ExecutionMode.STREAM:
            raise UnsupportedModeError(
                "mode stream: an invocation cannot stream; call StreamFunction (NodeApi.stream)"
            )
        if request.mode is ExecutionMode.ASYNC:
            # What follows may wait for nothing, and who submits a thousand, one after the other,
            # must not hold up what others have here.
            await trio.lowlevel.checkpoint()
        if request.idempotency_key:
            return await self._invoke_once(request)
        if request.input_object:
            request = await self._with_input(request)
        if request.mode is ExecutionMode.ASYNC:
            task = self._accept(request, attached=False)
            self._executor.start(task)
            answer = self._accepted(task)  # as it is now: the disk may take a while
            if task.record is not None:
                await task.record.accepted()
            return answer
        task = self._accept(request)
        if task.record is not None:
            await self._executor.written(task)
        await self._executor.run(task)
        if task.record is not None:
            await task.record.settled()
        return _ended(task)

    async def _invoke_once(self, request: InvokeRequest) -> InvokeResponse:
        """With an idempotency key: the task belongs to no caller, so whoever lost the connection
        can come again and find it."""
        check_sizes(request, self._config.execution)
        task = self._tasks.same(request)
        if task is None and request.input_object:
            request = await self._with_input(request)
            task = self._tasks.same(request)  # another one may have come meanwhile
        if task is None:
            task = self._accept(request, attached=False)
            self._executor.start(task)
        if task.record is not None:
            await task.record.accepted()
        if request.mode is ExecutionMode.ASYNC:
            return self._accepted(task)
        await wait_settled(task)
        return _ended(task)

    @asynccontextmanager
    async def stream(self, request: InvokeRequest) -> AsyncGenerator[InvokeStream]:
        """As :meth:`spear_core.api.NodeApi.stream`."""
        if request.payload or request.input_object:
            what = "payload" if request.payload else "input_object"
            raise InvalidRequestError(f"{what}: the input of a stream is sent on it")
        if request.idempotency_key:
            raise InvalidRequestError(
                "idempotency_key: a stream cannot be repeated, its input is not known beforehand"
            )
        await trio.lowlevel.checkpoint()
        artifact, _ = self._artifacts.resolve(request.function)
        runtime = self._services.declared_runtime(artifact.runtime).spec
        if Capability.STREAM not in runtime.capabilities:
            raise UnsupportedModeError(
                f"{request.function} cannot stream, for its runtime {runtime.name!r} does not; "
                "it can be invoked"
            )
        task = self._accept(request)
        stream = TaskStream(task, _ended)
        task.work = stream.work
        if task.record is not None:
            await self._executor.written(task)
        async with open_task_stream(stream, self._executor.run) as opened:
            yield opened

    def _accept(self, request: InvokeRequest, *, attached: bool = True) -> Task:
        """Check a request, reserve a place and make the task; the executor has to run it now.

        :param attached: its caller waits for it, and it ends with its caller.
        """
        self.refuse_when_stopping()
        check_sizes(request, self._config.execution)
        artifact, entry = self._artifacts.resolve(request.function)
        self._services.declared_runtime(artifact.runtime)
        deadline = trio.current_time() + timeout_of(request, artifact, self._config.execution)
        parent = self._tasks.parent(request)
        if parent is not None:
            check_depth(parent, self._config.execution)
        if parent is not None and not request.detached:
            deadline = min(deadline, parent.deadline)
        task = self._executor.accept(artifact, request, entry=entry, deadline=deadline)
        if self._tracing is not None:
            self._tracing.begin(task)
        if self._journal is not None and (not attached or self._config.tasks.durable_sync):
            self._journal.admit(task, attached=attached)
        if request.input_object and self._task_objects is not None:
            self._task_objects.hold_input(task, request.input_object)
        return task

    async def _with_input(self, request: InvokeRequest) -> InvokeRequest:
        """The request with the bytes of its input object, as they are now."""
        self.refuse_when_stopping()
        if self._task_objects is None:
            raise InvalidRequestError("input_object: this node has no objects")
        self._artifacts.resolve(request.function)  # first: it is cheaper to find missing
        return await self._task_objects.with_input(request)

    def _accepted(self, task: Task) -> InvokeResponse:
        timeout_s = task.deadline - trio.current_time()
        estimate = min(timeout_s, self._executor.estimate_s(task, timeout_s))
        return InvokeResponse(
            success=True,
            message="accepted",
            task=task.info(),
            status_endpoint=f"{STATUS_ENDPOINT}{task.execution_id}",
            estimated_completion_ms=round(estimate * 1000),
        )


async def wait_settled(task: Task) -> None:
    """Wait until a task is final, and that is on disk where it has to be."""
    await task.wait_final()
    if task.record is not None:
        await task.record.settled()
    if task.postponed:
        raise NodeStoppingError(
            f"the node is shutting down; task {task.id} goes on when it is started again"
        )


def _ended(task: Task) -> InvokeResponse:
    error = task.result.error if task.result else None
    return InvokeResponse(
        success=task.state is TaskState.COMPLETED,
        message="completed" if error is None else error.message,
        task=task.info(),
    )
