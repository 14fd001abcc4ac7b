"""Hostcalls: what the platform offers to running code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import attrs

from spear_core.api._descriptor import HostcallValue, OwnedFd
from spear_core.api._node import InvokeRequest, TaskInfo
from spear_core.api._plugin import PluginContext
from spear_core.api._store import ObjectStore

__all__ = ["FunctionCalls", "HostcallContext", "HostcallProvider", "HostcallSpec"]

C = TypeVar("C")


class FunctionCalls(ABC):
    """Other functions, for one running task: what it starts is its child.

    A child is cancelled when its parent ends, and has no more time than its parent has left,
    unless the request says ``detached``. It inherits the trace and the caller. ``mode`` and
    ``parent_task_id`` of a request are not looked at.
    """

    @abstractmethod
    async def invoke(self, request: InvokeRequest) -> TaskInfo:
        """Run a function and wait for its end; meanwhile the parent holds no slot.

        A child that fails, times out or is cancelled is an answer. **Raises** as
        :meth:`NodeApi.invoke`, and :exc:`~spear_core.errors.ResourceExhaustedError`, not
        retryable, when calls are nested too deep. **Cancellation**: cancels the child, unless it
        is detached.
        """

    @abstractmethod
    async def start(self, request: InvokeRequest) -> TaskInfo:
        """Have a function run and come back when its task is queued. **Raises** likewise."""

    @abstractmethod
    async def wait(self, task_id: str) -> TaskInfo:
        """Wait for the end of a child; meanwhile the parent holds no slot.

        **Raises** :exc:`~spear_core.errors.TaskNotFoundError`, also for a task that this one did
        not start. **Cancellation**: leaves the child alone.
        """

    @abstractmethod
    async def cancel(self, task_id: str, *, reason: str = "") -> TaskInfo:
        """Cancel a child and wait until nothing of it runs. **Raises** as :meth:`wait`."""


@attrs.frozen(kw_only=True)
class HostcallContext:
    """Who calls."""

    execution_id: str
    task_id: str
    artifact: str
    """``name@version``."""
    functions: FunctionCalls | None = None
    """Other functions, called in its name; always there in a node."""
    objects: ObjectStore | None = None
    """The objects that it may touch, under the names it knows them by: a key that begins with
    ``/`` is written out whole (``/producer/frame``), any other is its own (``frame`` is
    ``<artifact's name>/frame``). References are in its task's name."""
    fd: OwnedFd | None = None
    """A file that came with the call. It is closed once the call is answered; keep a copy."""
    takes_fd: bool = False
    """Whether the answer may have one (:attr:`HostcallValue.fd`)."""
    wait_ended: Callable[[], Awaitable[None]] | None = None
    """Returns when the caller's task has ended; always there in a node. For what a hostcall leaves
    open behind it."""


class HostcallProvider(ABC):
    """Answers the hostcalls of one family."""

    @abstractmethod
    async def call(
        self, caller: HostcallContext, name: str, payload: bytes
    ) -> bytes | HostcallValue:
        """Answer one call; any number run at the same time.

        :param name: one of the names in the spec. :param payload: as the guest sent it, of a form
            that the hostcall defines.

        Returns the bytes of the answer, or these and a file, if the caller takes one.

        **Raises** a :exc:`~spear_core.errors.SpearError`, which the guest sees with code and
        message; anything else is logged and reaches the guest as ``internal``. **Cancellation**:
        the caller's execution has ended; stop.
        """


@attrs.frozen(kw_only=True)
class HostcallSpec(Generic[C]):
    """Declares hostcalls; returned by the hook ``spear_hostcalls``."""

    names: frozenset[str]
    """Every name it answers, written ``family.verb``."""
    open: Callable[[PluginContext, C], AbstractAsyncContextManager[HostcallProvider]]
    config_cls: type[C]
    api: int = 1
