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
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

from spear_sdk import _calls
from spear_sdk._chunks import Collected, Given, Outputs, is_output_stream
from spear_sdk._context import Context, current
from spear_sdk._entry import Entry
from spear_sdk._errors import HostcallError
from spear_sdk._fake_objects import FakeObjects
from spear_sdk._output import BYTES, JSON, TEXT, encode_output, to_json

__all__ = ["FakeContext", "Result", "Streamed", "arun", "astream", "run", "stream"]

Answer: TypeAlias = "bytes | str | Exception | Callable[[bytes], bytes]"
_CALLS = ("functions.invoke", "functions.start", "functions.wait", "functions.cancel")


class _FakeHost:
    """Keeps logs and answers hostcalls from a table."""

    passes_fds = False

    def __init__(
        self,
        hostcalls: Mapping[str, Answer],
        functions: Mapping[str, Callable[..., Any]],
        objects: FakeObjects,
    ) -> None:
        self.objects = objects
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
        if name.startswith("objects.") and name not in self._answers:
            return self.objects.call(name, payload)
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

    def exchange(
        self, context: Context, name: str, payload: bytes, fd: int | None
    ) -> tuple[bytes, None]:
        """The same; files never go along."""
        return self.hostcall(context, name, payload), None

    async def aexchange(
        self, context: Context, name: str, payload: bytes, fd: int | None
    ) -> tuple[bytes, None]:
        """The same."""
        return self.hostcall(context, name, payload), None

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
            if key := head.get("input_object"):
                asked = _calls._join({"key": key})
                found, value = _calls._split(self.objects.call("objects.get", asked))
                head.setdefault("content_type", found["stat"]["content_type"])
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
        context._fake.objects = self.objects
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
        call, by name, each a function as SPEAR takes them. :param objects: what
        :attr:`~Context.objects` finds there, by key. :param deadline_s: seconds from now.
    """

    __slots__ = ("_fake",)

    def __init__(
        self,
        *,
        hostcalls: Mapping[str, Answer] | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        objects: Mapping[str, bytes] | None = None,
        deadline_s: float | None = None,
        attempt: int = 1,
        trace: str = "",
        given: Mapping[str, str] | None = None,
    ) -> None:
        self._fake = _FakeHost(hostcalls or {}, functions or {}, FakeObjects(objects or {}))
        super().__init__(
            self._fake,
            task_id="test-task",
            execution_id="test-execution",
            attempt=attempt,
            instance_id="test-instance",
            artifact="test@1",
            deadline=None if deadline_s is None else time.monotonic() + deadline_s,
            trace=trace,
            given=given,
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
    def stored(self) -> Mapping[str, bytes]:
        """The values of all objects, by key."""
        return self._fake.objects.values

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
    elif is_output_stream(value) and hasattr(type(value), "__anext__"):
        return _joined(cast("Streamed", _wait(_streamed(value, _TakingSink(None)), backend)))
    return _result(value)


async def arun(
    fn: Callable[..., Any],
    input: object = None,  # noqa: A002
    *,
    context: Context | None = None,
) -> Result:
    """:func:`run` for tests that are async themselves: uses the loop that runs."""
    value, _ = _call(fn, input, context)
    if hasattr(type(value), "__anext__"):
        return _joined(await _streamed(value, _TakingSink(None)))
    return _result(await value if isinstance(value, Awaitable) else value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streamed:
    """What a function did with a stream."""

    chunks: list[bytes]
    """What the caller gets, chunk by chunk, also when the function failed after them."""
    content_type: str
    error: BaseException | None = None
    """What the function raised."""

    @property
    def output(self) -> bytes:
        """All chunks joined."""
        return b"".join(self.chunks)


def stream(
    fn: Callable[..., Any],
    inputs: Iterable[object] = (),
    *,
    context: Context | None = None,
    content_type: str = BYTES,
    take: int | None = None,
) -> Streamed:
    """Call a function with its input in chunks, as a caller that streams would send them.

    ::

        def test_shout():
            assert stream(shout, ["a", "b"]).chunks == [b"A", b"B"]

    :param inputs: one item for each chunk; bytes and text go as they are, all else as JSON.
    :param take: the caller leaves after so many chunks, which closes the generator there.

    Raises: InvalidInputError when the input doesn't fit; what the function raises is in the result.
    """
    source, sink = _chunks_of(inputs), _TakingSink(take)
    context = context or FakeContext()
    token = current.set(context)
    try:
        entry, value = _call_on(fn, source, content_type, context)
        if isinstance(value, Awaitable) or hasattr(type(value), "__anext__"):
            return cast("Streamed", _wait(_streamed(value, sink), entry.backend))
        return _streamed_plain(value, sink)
    finally:
        current.reset(token)


async def astream(
    fn: Callable[..., Any],
    inputs: Iterable[object] = (),
    *,
    context: Context | None = None,
    content_type: str = BYTES,
    take: int | None = None,
) -> Streamed:
    """:func:`stream` for tests that are async themselves: uses the loop that runs."""
    source, sink = _chunks_of(inputs), _TakingSink(take)
    context = context or FakeContext()
    token = current.set(context)
    try:
        _, value = _call_on(fn, source, content_type, context)
        if isinstance(value, Awaitable) or hasattr(type(value), "__anext__"):
            return await _streamed(value, sink)
        return _streamed_plain(value, sink)
    finally:
        current.reset(token)


class _LeftError(Exception):
    """The caller has taken what it wanted."""


class _TakingSink(Collected):
    def __init__(self, take: int | None) -> None:
        super().__init__()
        self._take = take

    def send(self, data: bytes | bytearray | memoryview) -> None:
        super().send(data)
        if len(self.chunks) == self._take:
            raise _LeftError

    async def asend(self, data: bytes | bytearray | memoryview) -> None:
        self.send(data)


def _chunks_of(inputs: Iterable[object]) -> Given:
    return Given(*(_encode_input(item)[0] for item in inputs))


def _call_on(
    fn: Callable[..., Any], source: Given, content_type: str, context: Context
) -> tuple[Entry, Any]:
    entry = Entry(fn)
    payload = b"" if entry.takes_chunks else b"".join(iter(source.receive, None))
    return entry, entry.call(payload, content_type, context, source)


async def _streamed(value: Any, sink: _TakingSink) -> Streamed:
    outputs = Outputs(sink)
    error: Exception | None = None
    try:
        if isinstance(value, Awaitable):
            value = await value
        if hasattr(type(value), "__anext__"):
            await outputs.asend_all(value)
        else:
            return _streamed_plain(value, sink)
    except _LeftError:
        pass
    except Exception as exc:  # barrier: the function under test
        error = exc
    return Streamed(chunks=sink.chunks, content_type=outputs.told_type, error=error)


def _streamed_plain(value: Any, sink: _TakingSink) -> Streamed:
    outputs = Outputs(sink)
    error: Exception | None = None
    if not is_output_stream(value):
        output, content_type = encode_output(value)
        return Streamed(chunks=[bytes(output)] if output else [], content_type=content_type)
    try:
        outputs.send_all(value)
    except _LeftError:
        pass
    except Exception as exc:  # barrier: the function under test
        error = exc
    return Streamed(chunks=sink.chunks, content_type=outputs.told_type, error=error)


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


def _result(value: Any) -> Result:
    if is_output_stream(value):
        return _joined(_streamed_plain(value, _TakingSink(None)))
    output, content_type = encode_output(value)
    return Result(value=value, output=bytes(output), content_type=content_type)


def _joined(streamed: Streamed) -> Result:
    """What a caller gets who does not stream."""
    if streamed.error is not None:
        raise streamed.error
    return Result(value=streamed.chunks, output=streamed.output, content_type=streamed.content_type)
