"""Call a function in a unit test as SPEAR would, without a node.

::

    from spear_sdk.testing import run

    def test_greet():
        assert run(greet, "Ada").text == "Hello, Ada!"
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from spear_sdk import _calls
from spear_sdk._context import Context, current
from spear_sdk._entry import Entry
from spear_sdk._errors import HostcallError
from spear_sdk._output import BYTES, JSON, TEXT, encode_output, to_json

__all__ = ["FakeContext", "Result", "arun", "run"]

Answer: TypeAlias = "bytes | str | Exception | Callable[[bytes], bytes]"
_CALLS = ("functions.invoke", "functions.start", "functions.wait", "functions.cancel")


class _FakeHost:
    """Keeps logs and answers hostcalls from a table."""

    def __init__(
        self, hostcalls: Mapping[str, Answer], functions: Mapping[str, Callable[..., Any]]
    ) -> None:
        self.logs: list[tuple[str, str]] = []
        self.calls: list[tuple[str, bytes]] = []
        self.invoked: list[tuple[str, bytes]] = []
        self._answers = hostcalls
        self._functions = functions
        self._started: dict[str, bytes | HostcallError] = {}

    def log(self, context: Context, level: str, message: str) -> None:
        """Keep one entry."""
        self.logs.append((level, message))

    def hostcall(self, context: Context, name: str, payload: bytes) -> bytes:
        """Answer from the table."""
        if name in _CALLS and name not in self._answers:
            return self._function_call(name, payload)
        self.calls.append((name, payload))
        if name not in self._answers:
            raise HostcallError(
                f"this test has no answer to {name}", name="HostcallError", code="unimplemented"
            )
        answer = self._answers[name]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            return answer.encode()
        return answer if isinstance(answer, bytes) else answer(payload)

    async def ahostcall(self, context: Context, name: str, payload: bytes) -> bytes:
        """The same."""
        return self.hostcall(context, name, payload)

    def _function_call(self, name: str, payload: bytes) -> bytes:
        """What the node does for calls of other functions; they run when they are started."""
        head, value = _calls._split(payload)
        if name == "functions.cancel":
            error = HostcallError("the task was cancelled", code="cancelled")
            self._started[head["task_id"]] = error
            return _calls._join({"task_id": head["task_id"], "state": "cancelled"})
        if name == "functions.wait":
            answer = self._started[head["task_id"]]
        else:
            task_id = f"test-task-{len(self.invoked) + 1}"
            self.invoked.append((head["function"], value))
            answer = self._run(task_id, head, value)
            if name == "functions.start":
                self._started[task_id] = answer
                return _calls._join({"task_id": task_id})
        if isinstance(answer, HostcallError):
            raise answer
        return answer

    def _run(self, task_id: str, head: Any, value: bytes) -> bytes | HostcallError:
        name = head["function"]
        if name not in self._functions:
            what = f"this test has no function {name!r}"
            return HostcallError(what, name="ArtifactNotFoundError", code="not_found")
        entry = Entry(self._functions[name])
        context = FakeContext(functions=self._functions)
        token = current.set(context)
        try:
            result = entry.call(value, head["content_type"], context)
            if isinstance(result, Awaitable):
                result = _wait_elsewhere(_within(context, result), entry.backend)
            output, content_type = encode_output(result)
        except Exception as exc:  # barrier: one function
            error = HostcallError(
                str(exc), name="TaskFailedError", code=getattr(exc, "code", "unknown")
            )
            error.task_id, error.kind = task_id, type(exc).__name__
            error.details = getattr(exc, "details", {})
            return error
        finally:
            current.reset(token)
        return _calls._join({"task_id": task_id, "content_type": content_type}, output)


class FakeContext(Context):
    """A context for tests: remembers logs and hostcalls, and can be cancelled.

    :param hostcalls: the answer to each name: bytes, text, an exception to raise, or a function
        of the payload. :param functions: what :meth:`~Context.invoke` and :meth:`~Context.start`
        call, by name, each a function as SPEAR takes them. :param deadline_s: seconds from now.
    """

    __slots__ = ("_fake",)

    def __init__(
        self,
        *,
        hostcalls: Mapping[str, Answer] | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        deadline_s: float | None = None,
        attempt: int = 1,
        trace: str = "",
    ) -> None:
        self._fake = _FakeHost(hostcalls or {}, functions or {})
        super().__init__(
            self._fake,
            task_id="test-task",
            execution_id="test-execution",
            attempt=attempt,
            instance_id="test-instance",
            artifact="test@1",
            deadline=None if deadline_s is None else time.monotonic() + deadline_s,
            trace=trace,
        )

    @property
    def logs(self) -> list[tuple[str, str]]:
        """What was logged: level and message."""
        return self._fake.logs

    @property
    def calls(self) -> list[tuple[str, bytes]]:
        """The hostcalls made: name and payload."""
        return self._fake.calls

    @property
    def invoked(self) -> list[tuple[str, bytes]]:
        """The other functions called: name and input."""
        return self._fake.invoked

    def cancel(self) -> None:
        """Let ``cancelled`` be true from now on."""
        self._cancelled = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a function answered."""

    value: object
    """As it was returned."""
    output: bytes
    """As the caller gets it."""
    content_type: str

    @property
    def text(self) -> str:
        """The output as text."""
        return self.output.decode()

    def json(self) -> Any:
        """The output, read as JSON."""
        return json.loads(self.output)


def run(fn: Callable[..., Any], input: object = None, *, context: Context | None = None) -> Result:  # noqa: A002
    """Call a function, sync or async, with an input as a caller would send it.

    :param input: bytes and text go as they are, None is the empty input, all else goes as JSON.
    :param context: by default a fresh :class:`FakeContext`.

    Raises: InvalidInputError when the input doesn't fit, and whatever the function raises.
    """
    value, backend = _call(fn, input, context)
    if isinstance(value, Awaitable):
        value = _wait(value, backend)
    return _result(value)


async def arun(
    fn: Callable[..., Any],
    input: object = None,  # noqa: A002
    *,
    context: Context | None = None,
) -> Result:
    """:func:`run` for tests that are async themselves: uses the loop that runs."""
    value, _ = _call(fn, input, context)
    return _result(await value if isinstance(value, Awaitable) else value)


def _call(fn: Callable[..., Any], value: object, context: Context | None) -> tuple[object, str]:
    entry = Entry(fn)
    context = context or FakeContext()
    payload, content_type = _encode_input(value)
    token = current.set(context)
    try:
        result = entry.call(payload, content_type, context)
    finally:
        current.reset(token)
    if isinstance(result, Awaitable):
        result = _within(context, result)
    return result, entry.backend


async def _within(context: Context, awaitable: Awaitable[object]) -> object:
    token = current.set(context)
    try:
        return await awaitable
    finally:
        current.reset(token)


def _wait(awaitable: Awaitable[object], backend: str) -> object:
    async def main() -> object:
        return await awaitable

    if backend == "trio":
        import trio

        return trio.run(main)
    import asyncio

    return asyncio.run(main())


def _wait_elsewhere(awaitable: Awaitable[object], backend: str) -> object:
    """Run to its end what may be asked for within a loop that runs already."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_wait, awaitable, backend).result()


def _encode_input(value: object) -> tuple[bytes, str]:
    if value is None:
        return b"", BYTES
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), BYTES
    if isinstance(value, str):
        return value.encode(), TEXT
    return to_json(value), JSON


def _result(value: object) -> Result:
    output, content_type = encode_output(value)
    return Result(value=value, output=bytes(output), content_type=content_type)
