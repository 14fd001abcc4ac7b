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
from spear_core.client._face import following
from spear_core.client._sync_objects import ObjectReading, Objects, ObjectWriting
from spear_core.client._sync_wait import Block, SyncFace, SyncPieces, outcome
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


class Node(SyncFace[client.Node]):
    """A node; made by :func:`connect`. See :class:`spear_core.client.Node` for every method."""

    @property
    def url(self) -> str:
        """Where it is."""
        return self._inner.url

    @property
    def objects(self) -> Objects:
        """Its objects."""
        return Objects(self._inner.objects, self._thread)

    def call(self, question: Callable[[NodeApi], Awaitable[T]]) -> T:
        """Ask for anything of the whole interface; ``question`` runs in the trio thread."""
        return self._do(lambda: self._inner.call(question))

    def invoke(self, function: str, value: Input = None, **options: Unpack[CallOptions]) -> Result:
        """Call a function and wait for its result."""
        return self._do(lambda: self._inner.invoke(function, value, **options))

    def submit(
        self, function: str, value: Input = None, **options: Unpack[CallOptions]
    ) -> RemoteTask:
        """Have a function called and come back as soon as its task is queued."""
        task = self._do(lambda: self._inner.submit(function, value, **options))
        return RemoteTask(task, self._thread)

    def stream(
        self, function: str, **options: Unpack[CallOptions]
    ) -> AbstractContextManager[CallStream]:
        """Call a function with its input and output piece by piece, while the block lasts."""
        return Block(lambda: self._inner.stream(function, **options), self._thread, CallStream)

    def task(self, task_id: str) -> RemoteTask:
        """A task by its id, or by its execution's; asks nothing yet."""
        return RemoteTask(self._inner.task(task_id), self._thread)

    def tasks(self, *, limit: int = 100) -> Sequence[TaskInfo]:
        """The newest tasks first, without their outputs."""
        return self._do(lambda: self._inner.tasks(limit=limit))

    def deploy(
        self, code: Code, *, name: str = "", filename: str = "", **settings: Any
    ) -> ArtifactInfo:
        """Store code as the next version of its name."""
        return self._do(lambda: self._inner.deploy(code, name=name, filename=filename, **settings))

    def artifacts(self) -> Sequence[ArtifactInfo]:
        """Every version, by name, newest first."""
        return self._do(self._inner.artifacts)

    def delete_artifact(self, name: str, *, version: int | None = None) -> int:
        """Delete one version, or all; the number deleted."""
        return self._do(lambda: self._inner.delete_artifact(name, version=version))

    def instances(self) -> Sequence[InstanceInfo]:
        """Every live instance."""
        return self._do(self._inner.instances)

    def plugins(self) -> Sequence[PluginInfo]:
        """Every installed plugin, loaded or not."""
        return self._do(self._inner.plugins)

    def status(self) -> NodeStatus:
        """The node itself."""
        return self._do(self._inner.status)

    def metrics(self) -> NodeMetrics:
        """What the node has counted and measured."""
        return self._do(self._inner.metrics)


class RemoteTask(SyncFace[client.RemoteTask]):
    """A task that somebody else runs; see :class:`spear_core.client.RemoteTask`."""

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def task_id(self) -> str:
        """Which one."""
        return self._inner.task_id

    def wait(self) -> Result:
        """Wait for its end and give its result, or raise its error. An interrupt leaves
        the task alone."""
        return self._do(self._inner.wait)

    def status(self) -> TaskInfo:
        """How it is, now."""
        return self._do(self._inner.status)

    def cancel(self, reason: str = "") -> TaskInfo:
        """Cancel it and wait until nothing of it runs; a final one stays as it is."""
        return self._do(lambda: self._inner.cancel(reason))

    def logs(self, *, follow: bool = False) -> LogReader:
        """Its log, from the start, for `for`."""
        return LogReader(self._inner.logs(follow=follow), self._thread)


class LogReader(SyncPieces[client.LogReader, LogEntry]):
    """Entries of one task's log, in order; may be left at any time."""

    async def _next(self) -> LogEntry | None:
        return await anext(self._inner, None)


class CallStream(SyncPieces[InvokeStream, bytes]):
    """A call's input and output; see :class:`spear_core.api.InvokeStream`."""

    @property
    def task_id(self) -> str:
        """The task."""
        return self._inner.task_id

    def send(self, data: bytes) -> None:
        """Send one chunk; waits while the other side does not read."""
        self._do(lambda: self._inner.send(data))

    def send_eof(self) -> None:
        """Send nothing more; receiving goes on."""
        self._do(self._inner.send_eof)

    async def _next(self) -> bytes | None:
        return await following(self._inner)

    def result(self) -> InvokeResponse:
        """Wait for the end and say how it was; chunks that nobody has received are dropped."""
        return self._do(self._inner.result)


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
