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
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, Unpack

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
from spear_core.client._aio_wait import AioFace, AioPieces, block
from spear_core.client._calls import CallOptions, Input, Result
from spear_core.client._face import following
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


class Node(AioFace[client.Node]):
    """A node; made by :func:`connect`. See :class:`spear_core.client.Node` for every method."""

    @property
    def url(self) -> str:
        """Where it is."""
        return self._inner.url

    @property
    def objects(self) -> Objects:
        """Its objects."""
        return Objects(self._inner.objects, self._thread)

    async def call(self, question: Callable[[NodeApi], Awaitable[T]]) -> T:
        """Ask for anything of the whole interface; ``question`` runs in the trio thread."""
        return await self._do(lambda: self._inner.call(question))

    async def invoke(
        self, function: str, value: Input = None, **options: Unpack[CallOptions]
    ) -> Result:
        """Call a function and wait for its result."""
        return await self._do(lambda: self._inner.invoke(function, value, **options))

    async def submit(
        self, function: str, value: Input = None, **options: Unpack[CallOptions]
    ) -> RemoteTask:
        """Have a function called and come back as soon as its task is queued."""
        task = await self._do(lambda: self._inner.submit(function, value, **options))
        return RemoteTask(task, self._thread)

    def stream(
        self, function: str, **options: Unpack[CallOptions]
    ) -> AbstractAsyncContextManager[CallStream]:
        """Call a function with its input and output piece by piece, while the block lasts."""
        return block(lambda: self._inner.stream(function, **options), self._thread, CallStream)

    def task(self, task_id: str) -> RemoteTask:
        """A task by its id, or by its execution's; asks nothing yet."""
        return RemoteTask(self._inner.task(task_id), self._thread)

    async def tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        """The newest tasks first, without their outputs."""
        return await self._do(lambda: self._inner.tasks(limit=limit))

    async def deploy(
        self, code: Code, *, name: str = "", filename: str = "", **settings: Any
    ) -> ArtifactInfo:
        """Store code as the next version of its name."""
        return await self._do(
            lambda: self._inner.deploy(code, name=name, filename=filename, **settings)
        )

    async def artifacts(self) -> Sequence[ArtifactInfo]:
        """Every version, by name, newest first."""
        return await self._do(self._inner.artifacts)

    async def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        """Delete one version, or all; the number deleted."""
        return await self._do(lambda: self._inner.delete_artifact(name, version=version))

    async def instances(self) -> Sequence[InstanceInfo]:
        """Every live instance."""
        return await self._do(self._inner.instances)

    async def plugins(self) -> Sequence[PluginInfo]:
        """Every installed plugin, loaded or not."""
        return await self._do(self._inner.plugins)

    async def status(self) -> NodeStatus:
        """The node itself."""
        return await self._do(self._inner.status)

    async def metrics(self) -> NodeMetrics:
        """What the node has counted and measured."""
        return await self._do(self._inner.metrics)


class RemoteTask(AioFace[client.RemoteTask]):
    """A task that somebody else runs; see :class:`spear_core.client.RemoteTask`."""

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def task_id(self) -> str:
        """Which one."""
        return self._inner.task_id

    async def wait(self) -> Result:
        """Wait for its end and give its result, or raise its error. Being cancelled leaves
        the task alone."""
        return await self._do(self._inner.wait)

    async def status(self) -> TaskInfo:
        """How it is, now."""
        return await self._do(self._inner.status)

    async def cancel(self, reason: str = "") -> TaskInfo:
        """Cancel it and wait until nothing of it runs; a final one stays as it is."""
        return await self._do(lambda: self._inner.cancel(reason))

    def logs(self, *, follow: bool = False) -> LogReader:
        """Its log, from the start, for `async for`."""
        return LogReader(self._inner.logs(follow=follow), self._thread)


class LogReader(AioPieces[client.LogReader, LogEntry]):
    """Entries of one task's log, in order; may be left at any time."""

    async def _next(self) -> LogEntry | None:
        return await anext(self._inner, None)


class CallStream(AioPieces[InvokeStream, bytes]):
    """A call's input and output; see :class:`spear_core.api.InvokeStream`."""

    @property
    def task_id(self) -> str:
        """The task."""
        return self._inner.task_id

    async def send(self, data: bytes) -> None:
        """Send one chunk; waits while the other side does not read."""
        await self._do(lambda: self._inner.send(data))

    async def send_eof(self) -> None:
        """Send nothing more; receiving goes on."""
        await self._do(self._inner.send_eof)

    async def _next(self) -> bytes | None:
        return await following(self._inner)

    async def result(self) -> InvokeResponse:
        """Wait for the end and say how it was; chunks that nobody has received are dropped."""
        return await self._do(self._inner.result)


@asynccontextmanager
async def connect(url: str | None = None, *, state_dir: Path | None = None) -> AsyncIterator[Node]:
    """A node to work with while the block lasts; see :func:`spear_core.client.connect`."""
    thread = TrioThread()
    try:
        async with block(lambda: client.connect(url, state_dir=state_dir), thread, Node) as node:
            yield node
    finally:
        await asyncio.to_thread(thread.close)
