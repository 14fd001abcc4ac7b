"""The client for asyncio: the same as :mod:`spear_core.client`, awaited there.

::

    async with connect() as node:
        result = await node.invoke("hello", "world", timeout_s=10)

The work is done by one background thread for each open client, in which trio runs; a call hands its
work over and waits. Cancelling an asyncio task that waits cancels the call: the ``CancelledError``
comes out when the node has been told. Leaving the block ends the thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, Unpack

import trio

from spear_core import client
from spear_core.api import (
    ArtifactInfo,
    InstanceInfo,
    InvokeResponse,
    InvokeStream,
    LogEntry,
    NodeApi,
    NodeMetrics,
    NodeStatus,
    PluginInfo,
    TaskInfo,
)
from spear_core.client._aio_objects import ObjectReading, Objects, ObjectWriting
from spear_core.client._aio_wait import finished, outcome
from spear_core.client._calls import CallOptions, Input, Result
from spear_core.client._thread import TrioThread
from spear_core.client._upload import Code

__all__ = [
    "CallStream",
    "LogReader",
    "Node",
    "ObjectReading",
    "ObjectWriting",
    "Objects",
    "RemoteTask",
    "connect",
]

T = TypeVar("T")


class Node:
    """A node; made by :func:`connect`. See :class:`spear_core.client.Node` for every method."""

    def __init__(self, node: client.Node, thread: TrioThread) -> None:
        self._node = node
        self._thread = thread

    @property
    def url(self) -> str:
        """Where it is."""
        return self._node.url

    @property
    def objects(self) -> Objects:
        """Its objects."""
        return Objects(self._node.objects, self._thread)

    async def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        return await outcome(self._thread.start(work))

    async def call(self, question: Callable[[NodeApi], Awaitable[T]]) -> T:
        """Ask for anything of the whole interface; ``question`` runs in the trio thread."""
        return await self._do(lambda: self._node.call(question))

    async def invoke(
        self, function: str, value: Input = None, **options: Unpack[CallOptions]
    ) -> Result:
        """Call a function and wait for its result."""
        return await self._do(lambda: self._node.invoke(function, value, **options))

    async def submit(
        self, function: str, value: Input = None, **options: Unpack[CallOptions]
    ) -> RemoteTask:
        """Have a function called and come back as soon as its task is queued."""
        task = await self._do(lambda: self._node.submit(function, value, **options))
        return RemoteTask(task, self._thread)

    @asynccontextmanager
    async def stream(
        self, function: str, **options: Unpack[CallOptions]
    ) -> AsyncIterator[CallStream]:
        """Call a function with its input and output piece by piece, while the block lasts."""
        held = await outcome(self._thread.hold(self._node.stream(function, **options)))
        try:
            yield CallStream(held.value, self._thread)
        finally:
            await finished(held.leave())

    def task(self, task_id: str) -> RemoteTask:
        """A task by its id, or by its execution's; asks nothing yet."""
        return RemoteTask(self._node.task(task_id), self._thread)

    async def tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        """The newest tasks first, without their outputs."""
        return await self._do(lambda: self._node.tasks(limit=limit))

    async def deploy(
        self, code: Code, *, name: str = "", filename: str = "", **settings: Any
    ) -> ArtifactInfo:
        """Store code as the next version of its name."""
        return await self._do(
            lambda: self._node.deploy(code, name=name, filename=filename, **settings)
        )

    async def artifacts(self) -> Sequence[ArtifactInfo]:
        """Every version, by name, newest first."""
        return await self._do(self._node.artifacts)

    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        """Delete one version, or all; the number deleted."""
        return await self._do(lambda: self._node.delete_artifact(name, version=version))

    async def instances(self) -> Sequence[InstanceInfo]:
        """Every live instance."""
        return await self._do(self._node.instances)

    async def plugins(self) -> Sequence[PluginInfo]:
        """Every installed plugin, loaded or not."""
        return await self._do(self._node.plugins)

    async def status(self) -> NodeStatus:
        """The node itself."""
        return await self._do(self._node.status)

    async def metrics(self) -> NodeMetrics:
        """What the node has counted and measured."""
        return await self._do(self._node.metrics)


class RemoteTask:
    """A task that somebody else runs; see :class:`spear_core.client.RemoteTask`."""

    def __init__(self, task: client.RemoteTask, thread: TrioThread) -> None:
        self._task = task
        self._thread = thread

    def __repr__(self) -> str:
        return repr(self._task)

    @property
    def task_id(self) -> str:
        """Which one."""
        return self._task.task_id

    async def wait(self) -> Result:
        """Wait for its end and give its result, or raise its error. Being cancelled leaves
        the task alone."""
        return await outcome(self._thread.start(self._task.wait))

    async def status(self) -> TaskInfo:
        """How it is, now."""
        return await outcome(self._thread.start(self._task.status))

    async def cancel(self, reason: str = "") -> TaskInfo:
        """Cancel it and wait until nothing of it runs; a final one stays as it is."""
        return await outcome(self._thread.start(lambda: self._task.cancel(reason)))

    def logs(self, *, follow: bool = False) -> LogReader:
        """Its log, from the start, for `async for`."""
        return LogReader(self._task.logs(follow=follow), self._thread)


class LogReader:
    """Entries of one task's log, in order; may be left at any time."""

    def __init__(self, reader: client.LogReader, thread: TrioThread) -> None:
        self._reader = reader
        self._thread = thread

    def __aiter__(self) -> LogReader:
        return self

    async def __anext__(self) -> LogEntry:
        entry = await outcome(self._thread.start(self._next))
        if entry is None:
            raise StopAsyncIteration
        return entry

    async def _next(self) -> LogEntry | None:
        return await anext(self._reader, None)


class CallStream:
    """A call's input and output; see :class:`spear_core.api.InvokeStream`."""

    def __init__(self, stream: InvokeStream, thread: TrioThread) -> None:
        self._stream = stream
        self._thread = thread

    @property
    def task_id(self) -> str:
        """The task."""
        return self._stream.task_id

    async def send(self, data: bytes) -> None:
        """Send one chunk; waits while the other side does not read."""
        await outcome(self._thread.start(lambda: self._stream.send(data)))

    async def send_eof(self) -> None:
        """Send nothing more; receiving goes on."""
        await outcome(self._thread.start(self._stream.send_eof))

    def __aiter__(self) -> CallStream:
        return self

    async def __anext__(self) -> bytes:
        chunk = await outcome(self._thread.start(self._receive))
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _receive(self) -> bytes | None:
        try:
            return await self._stream.receive()
        except trio.EndOfChannel:
            return None

    async def result(self) -> InvokeResponse:
        """Wait for the end and say how it was; chunks that nobody has received are dropped."""
        return await outcome(self._thread.start(self._stream.result))


@asynccontextmanager
async def connect(url: str | None = None, *, state_dir: Path | None = None) -> AsyncIterator[Node]:
    """A node to work with while the block lasts; see :func:`spear_core.client.connect`."""
    thread = TrioThread()
    try:
        held = await outcome(thread.hold(client.connect(url, state_dir=state_dir)))
        try:
            yield Node(held.value, thread)
        finally:
            await finished(held.leave())
    finally:
        await asyncio.to_thread(thread.close)
