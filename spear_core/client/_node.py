"""A node, as a program that uses it sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack

import trio

from spear_core.api import (
    ArtifactInfo,
    ExecutionMode,
    InstanceInfo,
    InvokeStream,
    NodeApi,
    NodeMetrics,
    NodeStatus,
    PluginInfo,
    TaskInfo,
)
from spear_core.client._calls import CallOptions, Input, Result, make_request, result_of
from spear_core.client._doors import door_for, node_url
from spear_core.client._line import Line
from spear_core.client._objects import Objects, with_output
from spear_core.client._task import RemoteTask
from spear_core.client._upload import Code, make_upload

__all__ = ["Node", "connect"]

T = TypeVar("T")


class Node:
    """A node on the other side of a connection; made by :func:`connect`.

    Any number of tasks may use it at once; all share one connection. When that is lost, what was
    under way raises :exc:`~spear_core.errors.NodeUnreachableError` and the next call dials anew.
    What may have run is never sent twice, except a call with an ``idempotency_key``; what only
    looks is asked once more. Every method raises what :class:`~spear_core.api.NodeApi` says.
    """

    def __init__(self, line: Line) -> None:
        self._line = line

    @property
    def url(self) -> str:
        """Where it is."""
        return self._line.url

    @property
    def objects(self) -> Objects:
        """Its objects."""
        return Objects(self._line)

    async def api(self) -> NodeApi:
        """The whole interface, on the connection of now; lost with it."""
        return await self._line.connect()

    async def call(self, question: Callable[[NodeApi], Awaitable[T]]) -> T:
        """Ask for anything of the whole interface: ``node.call(lambda api: api.status())``."""
        return await self._line.ask(question, repeatable=False)

    async def _look(self, question: Callable[[NodeApi], Awaitable[T]]) -> T:
        return await self._line.ask(question, repeatable=True)

    async def invoke(
        self, function: str, value: Input = None, **options: Unpack[CallOptions]
    ) -> Result:
        """Call a function and wait for its result.

        :param function: ``artifact[@version][:entry]``.
        :param value: the input: bytes, text, ``None`` or what can be JSON.

        **Raises** :exc:`~spear_core.errors.TaskFailedError`,
        :exc:`~spear_core.errors.TaskTimeoutError`, :exc:`~spear_core.errors.TaskCancelledError`,
        and as :meth:`NodeApi.invoke <spear_core.api.NodeApi.invoke>` when it did not start.
        **Cancellation**: cancels the task.
        """
        request = make_request(function, value, options)
        response = await self._line.ask(
            lambda api: api.invoke(request), repeatable=bool(request.idempotency_key)
        )
        return result_of(await with_output(self._line, response.task))

    async def submit(
        self, function: str, value: Input = None, **options: Unpack[CallOptions]
    ) -> RemoteTask:
        """Have a function called and come back as soon as its task is queued."""
        request = make_request(function, value, options, mode=ExecutionMode.ASYNC)
        response = await self._line.ask(
            lambda api: api.invoke(request), repeatable=bool(request.idempotency_key)
        )
        return RemoteTask(self._line, response.task.task_id)

    @asynccontextmanager
    async def stream(
        self, function: str, **options: Unpack[CallOptions]
    ) -> AsyncIterator[InvokeStream]:
        """Call a function with its input and output piece by piece, while the block lasts.

        See :meth:`NodeApi.stream <spear_core.api.NodeApi.stream>`.
        """
        request = make_request(function, None, options, mode=ExecutionMode.STREAM)
        async with self._line.borrow() as api, api.stream(request) as stream:
            yield stream

    def task(self, task_id: str) -> RemoteTask:
        """A task by its id, or by its execution's; asks nothing yet."""
        return RemoteTask(self._line, task_id)

    async def tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        """The newest tasks first, without their outputs."""
        return await self._look(lambda api: api.list_tasks(limit=limit))

    async def deploy(
        self, code: Code, *, name: str = "", filename: str = "", **settings: Any
    ) -> ArtifactInfo:
        """Store code as the next version of its name.

        :param code: a path, or the content, which needs ``name`` and ``filename``.
        :param settings: further fields of :class:`~spear_core.api.ArtifactUpload`: ``runtime``,
            ``entry``, ``env``, ``limits``, …

        **Raises** :exc:`OSError` when the file cannot be read, :exc:`TypeError` for a setting that
        there is not, :exc:`~spear_core.errors.InvalidRequestError` for one that cannot be, else as
        :meth:`NodeApi.deploy <spear_core.api.NodeApi.deploy>`.
        """
        upload = await trio.to_thread.run_sync(
            partial(make_upload, code, name=name, filename=filename, settings=settings)
        )
        return await self._look(lambda api: api.deploy(upload))  # the same again is one version

    async def artifacts(self) -> Sequence[ArtifactInfo]:
        """Every version, by name, newest first."""
        return await self._look(lambda api: api.list_artifacts())

    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        """Delete one version, or all; the number deleted."""
        return await self.call(lambda api: api.delete_artifact(name, version=version))

    async def instances(self) -> Sequence[InstanceInfo]:
        """Every live instance."""
        return await self._look(lambda api: api.list_instances())

    async def plugins(self) -> Sequence[PluginInfo]:
        """Every installed plugin, loaded or not."""
        return await self._look(lambda api: api.list_plugins())

    async def status(self) -> NodeStatus:
        """The node itself."""
        return await self._look(lambda api: api.status())

    async def metrics(self) -> NodeMetrics:
        """What the node has counted and measured."""
        return await self._look(lambda api: api.metrics())


@asynccontextmanager
async def connect(url: str | None = None, *, state_dir: Path | None = None) -> AsyncIterator[Node]:
    """A node to work with while the block lasts.

    :param url: ``unix:///…/node.sock``, or of another scheme that a plugin speaks. Without one,
        the node on ``state_dir``, else on the user's own state directory.

    **Raises** :exc:`~spear_core.errors.NodeUnreachableError` when nobody answers there,
    :exc:`~spear_core.errors.InvalidRequestError` for a scheme that nobody speaks. What the block
    raises comes out as it is.
    """
    url = url or node_url(state_dir)
    door = door_for(url)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        line = Line(url, door, nursery)
        try:
            await line.connect()
            yield Node(line)
        except Exception as exc:  # barrier: carried past the nursery so that it stays as it is
            failure = exc
        finally:
            line.close()
    if failure is not None:
        raise failure
