"""The client for programs without an event loop: the same as :mod:`spear_core.client`, blocking.

::

    with connect() as node:
        result = node.invoke("hello", "world", timeout_s=10)

Any number of threads may use one client at the same time. The work is done by one background
thread for each open client, in which trio runs. ``KeyboardInterrupt``, in the main thread, cancels
the call and comes out when the node has been told; a second one does not wait for that. Leaving
the block ends the thread. A client does not survive ``os.fork``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
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
from spear_core.client._calls import CallOptions, Input, Result
from spear_core.client._sync_objects import ObjectReading, Objects, ObjectWriting
from spear_core.client._sync_wait import Block, outcome
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

    def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        return outcome(self._thread.start(work))

    def call(self, question: Callable[[NodeApi], Awaitable[T]]) -> T:
        """Ask for anything of the whole interface; ``question`` runs in the trio thread."""
        return self._do(lambda: self._node.call(question))

    def invoke(self, function: str, value: Input = None, **options: Unpack[CallOptions]) -> Result:
        """Call a function and wait for its result."""
        return self._do(lambda: self._node.invoke(function, value, **options))

    def submit(
        self, function: str, value: Input = None, **options: Unpack[CallOptions]
    ) -> RemoteTask:
        """Have a function called and come back as soon as its task is queued."""
        task = self._do(lambda: self._node.submit(function, value, **options))
        return RemoteTask(task, self._thread)

    def stream(
        self, function: str, **options: Unpack[CallOptions]
    ) -> AbstractContextManager[CallStream]:
        """Call a function with its input and output piece by piece, while the block lasts."""
        return Block(lambda: self._node.stream(function, **options), self._thread, CallStream)

    def task(self, task_id: str) -> RemoteTask:
        """A task by its id, or by its execution's; asks nothing yet."""
        return RemoteTask(self._node.task(task_id), self._thread)

    def tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        """The newest tasks first, without their outputs."""
        return self._do(lambda: self._node.tasks(limit=limit))

    def deploy(
        self, code: Code, *, name: str = "", filename: str = "", **settings: Any
    ) -> ArtifactInfo:
        """Store code as the next version of its name."""
        return self._do(lambda: self._node.deploy(code, name=name, filename=filename, **settings))

    def artifacts(self) -> Sequence[ArtifactInfo]:
        """Every version, by name, newest first."""
        return self._do(self._node.artifacts)

    def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        """Delete one version, or all; the number deleted."""
        return self._do(lambda: self._node.delete_artifact(name, version=version))

    def instances(self) -> Sequence[InstanceInfo]:
        """Every live instance."""
        return self._do(self._node.instances)

    def plugins(self) -> Sequence[PluginInfo]:
        """Every installed plugin, loaded or not."""
        return self._do(self._node.plugins)

    def status(self) -> NodeStatus:
        """The node itself."""
        return self._do(self._node.status)

    def metrics(self) -> NodeMetrics:
        """What the node has counted and measured."""
        return self._do(self._node.metrics)


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

    def wait(self) -> Result:
        """Wait for its end and give its result, or raise its error. An interrupt leaves
        the task alone."""
        return outcome(self._thread.start(self._task.wait))

    def status(self) -> TaskInfo:
        """How it is, now."""
        return outcome(self._thread.start(self._task.status))

    def cancel(self, reason: str = "") -> TaskInfo:
        """Cancel it and wait until nothing of it runs; a final one stays as it is."""
        return outcome(self._thread.start(lambda: self._task.cancel(reason)))

    def logs(self, *, follow: bool = False) -> LogReader:
        """Its log, from the start, for `for`."""
        return LogReader(self._task.logs(follow=follow), self._thread)


class LogReader:
    """Entries of one task's log, in order; may be left at any time."""

    def __init__(self, reader: client.LogReader, thread: TrioThread) -> None:
        self._reader = reader
        self._thread = thread

    def __iter__(self) -> LogReader:
        return self

    def __next__(self) -> LogEntry:
        entry = outcome(self._thread.start(self._next))
        if entry is None:
            raise StopIteration
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

    def send(self, data: bytes) -> None:
        """Send one chunk; waits while the other side does not read."""
        outcome(self._thread.start(lambda: self._stream.send(data)))

    def send_eof(self) -> None:
        """Send nothing more; receiving goes on."""
        outcome(self._thread.start(self._stream.send_eof))

    def __iter__(self) -> CallStream:
        return self

    def __next__(self) -> bytes:
        chunk = outcome(self._thread.start(self._receive))
        if chunk is None:
            raise StopIteration
        return chunk

    async def _receive(self) -> bytes | None:
        try:
            return await self._stream.receive()
        except trio.EndOfChannel:
            return None

    def result(self) -> InvokeResponse:
        """Wait for the end and say how it was; chunks that nobody has received are dropped."""
        return outcome(self._thread.start(self._stream.result))


def connect(
    url: str | None = None, *, state_dir: Path | None = None
) -> AbstractContextManager[Node]:
    """A node to work with while the block lasts; see :func:`spear_core.client.connect`."""
    return _Connecting(lambda: client.connect(url, state_dir=state_dir))


class _Connecting(AbstractContextManager[Node]):
    """Opens the client, in a thread of its own.

    No generator: one that is forgotten would be closed while the interpreter ends, and wait there
    for a thread that does not run any more.
    """

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[client.Node]]) -> None:
        self._make = make

    def __enter__(self) -> Node:
        with ExitStack() as stack:
            thread = TrioThread()
            stack.callback(thread.close)
            held = outcome(thread.hold(self._make()))
            stack.callback(lambda: held.leave().result())
            self._close = stack.pop_all()
        return Node(held.value, thread)

    def __exit__(self, *_: object) -> None:
        self._close.close()
