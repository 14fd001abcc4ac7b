"""What a running function can ask about itself and of its node."""

from __future__ import annotations

import os
import time
from contextvars import ContextVar

from spear_sdk._calls import StartedCall, decode_result, encode_call
from spear_sdk._errors import TaskCancelledError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar, Protocol, Unpack

    from spear_sdk._calls import CallOptions
    from spear_sdk._frames import Descriptor
    from spear_sdk._objects import Objects

    class Host(Protocol):
        """Where a context's logs and hostcalls go: the worker, or a fake in a test."""

        def log(self, context: Context, level: str, message: str) -> None:
            """Deliver one log entry."""

        def hostcall(self, context: Context, name: str, payload: bytes) -> bytes:
            """Make a hostcall and wait for its answer."""

        async def ahostcall(self, context: Context, name: str, payload: bytes) -> bytes:
            """The same for async code."""

        @property
        def passes_fds(self) -> bool:
            """Whether files can go along with a hostcall and its answer."""

        def exchange(
            self, context: Context, name: str, payload: bytes, fd: int | None
        ) -> tuple[bytes, Descriptor | None]:
            """:meth:`hostcall`, with files."""

        async def aexchange(
            self, context: Context, name: str, payload: bytes, fd: int | None
        ) -> tuple[bytes, Descriptor | None]:
            """The same for async code."""


__all__ = ["Context", "Log", "current_context"]

current: ContextVar[Context] = ContextVar("spear_context")


class Log:
    """Writes to the task's log. ``args`` are put into the message with ``%``, as in logging."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def _write(self, level: str, message: object, args: tuple[object, ...]) -> None:
        text = str(message)
        self._context._host.log(self._context, level, text % args if args else text)

    def trace(self, message: object, *args: object) -> None:
        """The finest detail."""
        self._write("trace", message, args)

    def debug(self, message: object, *args: object) -> None:
        """For whoever looks for a bug."""
        self._write("debug", message, args)

    def info(self, message: object, *args: object) -> None:
        """What happens, in the normal course."""
        self._write("info", message, args)

    def warn(self, message: object, *args: object) -> None:
        """Unexpected, but the function goes on."""
        self._write("warn", message, args)

    def error(self, message: object, *args: object) -> None:
        """Something failed."""
        self._write("error", message, args)


class Context:
    """One execution, as its function sees it. The SDK makes it."""

    __slots__ = (
        "_cancelled",
        "_host",
        "artifact",
        "attempt",
        "deadline",
        "execution_id",
        "given",
        "instance_id",
        "task_id",
        "trace",
    )

    task_id: str
    """The task: the same for all attempts."""
    execution_id: str
    """This attempt."""
    attempt: int
    """1 for the first."""
    instance_id: str
    """The worker this runs in."""
    artifact: str
    """``name@version``."""
    deadline: float | None
    """When the node stops the task, on the clock of ``time.monotonic()``; None: never."""
    trace: str
    """The W3C ``traceparent`` of the call, or empty."""
    given: Mapping[str, str]
    """What the caller said beside the input: ``spear invoke --context K=V``."""

    def __init__(
        self,
        host: Host,
        *,
        task_id: str = "",
        execution_id: str = "",
        attempt: int = 1,
        instance_id: str = "",
        artifact: str = "",
        deadline: float | None = None,
        trace: str = "",
        given: Mapping[str, str] | None = None,
    ) -> None:
        self._host = host
        self._cancelled = False
        self.task_id = task_id
        self.execution_id = execution_id
        self.attempt = attempt
        self.instance_id = instance_id
        self.artifact = artifact
        self.deadline = deadline
        self.trace = trace
        self.given = given or {}

    def __repr__(self) -> str:
        return f"<Context of task {self.task_id!r}, attempt {self.attempt}>"

    @property
    def log(self) -> Log:
        """The task's log: ``ctx.log.info("read %d rows", n)``."""
        return Log(self)

    @property
    def env(self) -> Mapping[str, str]:
        """The environment that was given to the artifact."""
        return os.environ

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None without a deadline."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the task was cancelled. The node soon kills a function that goes on."""
        return self._cancelled

    def raise_if_cancelled(self) -> None:
        """Raises: TaskCancelledError when the task was cancelled."""
        if self._cancelled:
            raise TaskCancelledError("the task was cancelled")

    def hostcall(self, name: str, payload: bytes | bytearray | memoryview | str = b"") -> bytes:
        """Ask the node for a service and wait for the answer; for sync functions.

        :param name: such as ``objects.get``. :param payload: in the form the hostcall defines.

        Raises: HostcallError when the node refuses or fails, TaskCancelledError when the task is
        cancelled meanwhile.
        """
        self.raise_if_cancelled()
        return self._host.hostcall(self, name, _as_bytes(payload))

    async def ahostcall(
        self, name: str, payload: bytes | bytearray | memoryview | str = b""
    ) -> bytes:
        """:meth:`hostcall` for async functions, on asyncio and on trio.

        Cancelling it cancels the call in the node.
        """
        self.raise_if_cancelled()
        return await self._host.ahostcall(self, name, _as_bytes(payload))

    @property
    def objects(self) -> Objects:
        """What this function shares with others through the node: ``ctx.objects.put("key", data)``,
        ``ctx.objects.get("key")``."""
        from spear_sdk._objects import Objects  # late: most functions have no use for it

        return Objects(self)

    def invoke(self, function: str, value: object = None, **options: Unpack[CallOptions]) -> Any:
        """Call another function and wait for what it returns; for sync functions.

        :param function: ``artifact[@version][:entry]``. :param value: its input: bytes as they
            are, text as UTF-8, None as nothing, anything else as JSON. :param options:
            ``timeout`` (seconds), ``detached``, ``priority``, ``idempotency_key``, ``context``,
            ``content_type``, ``input_object`` (with no ``value``).

        Returns JSON as its value, text as ``str``, anything else as bytes. The call is a task of
        its own, with no more time than this one has left; it is cancelled with this one unless
        ``detached``. While this one waits it takes no slot of the node.

        Raises: HostcallError with the code, ``kind`` and ``details`` of the other function's
        failure; OutputError when ``value`` is nothing that can be sent.
        """
        return decode_result(
            self.hostcall("functions.invoke", encode_call(function, value, **options))
        )

    async def ainvoke(
        self, function: str, value: object = None, **options: Unpack[CallOptions]
    ) -> Any:
        """:meth:`invoke` for async functions. Cancelling it cancels the call."""
        return decode_result(
            await self.ahostcall("functions.invoke", encode_call(function, value, **options))
        )

    def start(
        self, function: str, value: object = None, **options: Unpack[CallOptions]
    ) -> StartedCall:
        """Start another function and go on; takes what :meth:`invoke` takes."""
        return StartedCall(
            self, self.hostcall("functions.start", encode_call(function, value, **options))
        )

    async def astart(
        self, function: str, value: object = None, **options: Unpack[CallOptions]
    ) -> StartedCall:
        """:meth:`start` for async functions."""
        return StartedCall(
            self, await self.ahostcall("functions.start", encode_call(function, value, **options))
        )


def _as_bytes(payload: bytes | bytearray | memoryview | str) -> bytes:
    return payload.encode() if isinstance(payload, str) else bytes(payload)


class Running:
    """The execution this process is busy with, for threads that don't inherit the variable."""

    context: Context | None = None
    several: ClassVar[set[Context]] = set()
    """The executions of a worker that has several at the same time."""

    @classmethod
    def has(cls, context: Context) -> bool:
        """Whether this execution is under way."""
        return context is cls.context or context in cls.several


def current_context() -> Context:
    """The context of the function that runs, from anywhere below it, threads included.

    Raises: RuntimeError outside of an execution.
    """
    context = current.get(None) or Running.context
    if context is None and len(Running.several) == 1:
        (context,) = Running.several
    if context is None:
        raise RuntimeError("there is no context: no SPEAR function is running here")
    return context
