"""Hostcalls: from a running guest to the node's services."""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger

from spear_core.api import (
    FunctionCalls,
    HostcallContext,
    HostcallProvider,
    Hostcalls,
    HostcallValue,
)
from spear_core.errors import InvalidRequestError, SpearError
from spear_core.node._failures import as_spear_error
from spear_core.node._secrets import Secrets
from spear_core.node._services import Services
from spear_core.node._task import Task
from spear_core.node._task_objects import TaskObjects
from spear_core.node._task_table import TaskTable
from spear_core.node._tracing import trace_id
from spear_core.plugins import Plugins

__all__ = ["NodeHostcalls"]

_LEVELS = frozenset({"trace", "debug", "info", "warn", "error"})


class NodeHostcalls(Hostcalls):
    """The node's side of hostcalls."""

    def __init__(
        self,
        services: Services,
        plugins: Plugins,
        tasks: TaskTable,
        *,
        log: Logger,
        secrets: Secrets | None = None,
        objects: TaskObjects | None = None,
    ) -> None:
        self._services = services
        self._plugins = plugins
        self._tasks = tasks
        self._log = log
        self._objects = objects
        self._secrets = secrets or Secrets({}, warn=log.warning)
        self._functions: Callable[[Task], FunctionCalls] | None = None

    def attach(self, functions: Callable[[Task], FunctionCalls]) -> None:
        """Complete the circle: what a task may do with others takes the node that has these."""
        self._functions = functions

    def log(
        self, execution_id: str, message: str, *, level: str = "info", source: str = "guest"
    ) -> None:
        task = self._tasks.by_execution(execution_id)
        if task is not None:
            level = level if level in _LEVELS else "info"
            message = self._secrets.strike(task.artifact, message)
            task.log.append(
                execution_id, message, level=level, source=source, trace_id=trace_id(task.trace)
            )

    async def call(self, execution_id: str, name: str, payload: bytes) -> bytes:
        value = HostcallValue(payload)
        return bytes((await self.exchange(execution_id, name, value, takes_fd=False)).payload)

    async def exchange(
        self, execution_id: str, name: str, value: HostcallValue, *, takes_fd: bool
    ) -> HostcallValue:
        try:
            return await self._exchange(execution_id, name, value, takes_fd=takes_fd)
        finally:
            if value.fd is not None:
                value.fd.close()

    async def _exchange(
        self, execution_id: str, name: str, value: HostcallValue, *, takes_fd: bool
    ) -> HostcallValue:
        task = self._tasks.by_execution(execution_id)
        if task is None or task.state.is_final:
            raise InvalidRequestError(f"hostcall {name}: no execution {execution_id!r} runs here")
        owned = self._plugins.hostcalls.get(name)
        if owned is None:
            raise SpearError(f"no plugin provides the hostcall {name!r}", code="unimplemented")
        key = ",".join(sorted(owned.spec.names))
        provider = await self._services.open("hostcalls", key, owned.plugin_name, owned.spec)
        assert isinstance(provider, HostcallProvider)
        caller = HostcallContext(
            execution_id=execution_id,
            task_id=task.id,
            artifact=task.artifact.ref,
            functions=self._functions(task) if self._functions is not None else None,
            objects=self._objects.scoped(task) if self._objects is not None else None,
            fd=value.fd,
            takes_fd=takes_fd,
            wait_ended=task.wait_final,
        )
        payload = bytes(value.payload)
        try:
            if task.tracing is None:
                answer = await provider.call(caller, name, payload)
            else:
                with task.tracing.hostcall(name, parent=task.trace):
                    answer = await provider.call(caller, name, payload)
            return _value(answer, name, takes_fd=takes_fd)
        except Exception as raised:  # barrier: one hostcall
            raise as_spear_error(raised, f"hostcall {name}", self._log) from raised


def _value(answer: bytes | HostcallValue, name: str, *, takes_fd: bool) -> HostcallValue:
    """What the provider answered, as a value. :raises SpearError: it has a file nobody takes."""
    if not isinstance(answer, HostcallValue):
        return HostcallValue(answer)
    if answer.fd is not None and not takes_fd:
        answer.fd.close()
        raise SpearError(f"hostcall {name} answered with a file to a caller that takes none")
    return answer
