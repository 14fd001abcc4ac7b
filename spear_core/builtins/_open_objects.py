"""Objects that running code reads or writes piece by piece: open from one hostcall to the next."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar

import trio

from spear_core.api import HostcallContext
from spear_core.errors import InvalidRequestError, ResourceExhaustedError

__all__ = ["IDLE_S", "MOST_OPEN", "OpenObjects"]

T = TypeVar("T")

IDLE_S = 60.0
"""What is not used for so long is closed."""
MOST_OPEN = 32
"""So many one task may have."""
_LAST_USE_S = 10.0
"""How long closing waits for a call that still uses it; calls end with their execution."""

_log = logging.getLogger("spear.objects")


class _Handle(Generic[T]):
    """One of them. Its life is a task of its own, which entered its block and leaves it."""

    def __init__(self, owner: str, what: type[T]) -> None:
        self.name = secrets.token_hex(8)
        self.owner = owner
        self.what = what
        self.using = trio.Lock()
        self.scope = trio.CancelScope()
        self.gone = trio.Event()
        self.thing: T


class OpenObjects:
    """The open ones of all tasks.

    :param nursery: where their tasks live.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._handles: dict[str, _Handle[Any]] = {}

    async def add(
        self, caller: HostcallContext, what: type[T], opening: AbstractAsyncContextManager[T]
    ) -> tuple[str, T]:
        """Open one for the caller: its handle, and itself.

        It is closed by :meth:`close`, when it was idle for too long, and with the caller's task.
        **Raises** what opening it raises, and :exc:`~spear_core.errors.ResourceExhaustedError`.
        """
        if sum(handle.owner == caller.task_id for handle in self._handles.values()) >= MOST_OPEN:
            raise ResourceExhaustedError(
                f"this task has {MOST_OPEN} objects open already; close some", retryable=False
            )
        handle: _Handle[T] = _Handle(caller.task_id, what)
        self._handles[handle.name] = handle  # it counts from now on
        try:
            await self._nursery.start(self._live, handle, opening, caller)
        except BaseException:
            self._handles.pop(handle.name, None)
            raise
        return handle.name, handle.thing

    async def _live(
        self,
        handle: _Handle[T],
        opening: AbstractAsyncContextManager[T],
        caller: HostcallContext,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        started = False
        try:
            async with opening as handle.thing:
                handle.scope.deadline = trio.current_time() + IDLE_S
                started = True
                task_status.started()
                with handle.scope:
                    await (caller.wait_ended or trio.sleep_forever)()
                del self._handles[handle.name]
                with trio.move_on_after(_LAST_USE_S, shield=True):
                    async with handle.using:
                        pass  # whoever waits for it now finds it gone
        except Exception:  # barrier: one object that was left open
            if not started:
                raise
            _log.exception("an object that %s had open could not be closed", caller.task_id)
        finally:
            self._handles.pop(handle.name, None)
            handle.gone.set()

    @asynccontextmanager
    async def use(
        self, caller: HostcallContext, name: str, what: type[T]
    ) -> AsyncGenerator[T, None]:
        """One that the caller has open; no other call uses it meanwhile.

        **Raises** :exc:`~spear_core.errors.InvalidRequestError`: the caller has none of this kind
        with this handle.
        """
        handle = self._find(caller, name)
        if handle.what is not what:
            raise InvalidRequestError(f"the handle {name!r} is not for this")
        async with handle.using:
            self._find(caller, name)
            handle.scope.deadline = trio.current_time() + IDLE_S
            try:
                yield handle.thing
            finally:
                handle.scope.deadline = trio.current_time() + IDLE_S

    async def close(self, caller: HostcallContext, name: str) -> None:
        """Close it and wait until it is. **Raises** as :meth:`use`."""
        handle = self._find(caller, name)
        handle.scope.cancel()
        await handle.gone.wait()

    async def drop(self, caller: HostcallContext, name: str) -> None:
        """:meth:`close`, if it is there. **Cancellation**: it is closed soon all the same."""
        handle = self._handles.get(name)
        if handle is not None and handle.owner == caller.task_id:
            await self.close(caller, name)

    def _find(self, caller: HostcallContext, name: str) -> _Handle[Any]:
        handle = self._handles.get(name)
        if handle is None or handle.owner != caller.task_id:
            raise InvalidRequestError(
                f"this task has nothing open under the handle {name[:40]!r}; what is not used for "
                f"{IDLE_S:g} seconds is closed"
            )
        return handle
