"""A worker that has several executions at the same time.

The main thread only reads the channel. Each execution has a thread: a sync function runs in it, an
async one on the one event loop of its kind while the thread waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import threading
from concurrent.futures import Future
from contextvars import copy_context

from spear_sdk import _frames as f
from spear_sdk._context import Running, current
from spear_sdk._errors import TaskCancelledError
from spear_sdk._msgpack import pack
from spear_sdk._tracing import continue_trace
from spear_sdk._worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, MutableMapping
    from typing import Any

    from spear_sdk._context import Context
    from spear_sdk._execution import Execution
    from spear_sdk._hostcalls import Hostcalls

__all__ = ["ParallelWorker"]

_NO_USAGE = pack("usage") + b"\x80"
"""What a process uses cannot be told apart by execution."""


class AsyncioThread:
    """One asyncio loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._serve, name="spear-asyncio", daemon=True).start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def run(self, awaitable: Awaitable[Any], execution: Execution) -> object:
        """Wait for it. Raises: what it raises, TaskCancelledError when that is why it ended."""
        context = copy_context()
        ended: Future[object] = Future()
        cancelled = False

        def begin() -> None:
            task = self._loop.create_task(_as_coroutine(awaitable), context=context)
            task.add_done_callback(end)

            def cancel() -> None:
                nonlocal cancelled
                cancelled = True
                self._loop.call_soon_threadsafe(task.cancel)

            execution.on_cancel(cancel)

        def end(task: asyncio.Task[object]) -> None:
            if task.cancelled():
                error: BaseException = asyncio.CancelledError()
                if cancelled:
                    error = TaskCancelledError("the task was cancelled")
                ended.set_exception(error)
            elif (raised := task.exception()) is not None:
                ended.set_exception(raised)
            else:
                ended.set_result(task.result())

        self._loop.call_soon_threadsafe(begin)
        return ended.result()

    def idle(self, descriptor: int) -> None:
        """Nothing to do: its thread goes on by itself."""

    def close(self) -> None:
        """End; what functions have left behind ends with the process."""
        self._loop.call_soon_threadsafe(self._loop.stop)


async def _as_coroutine(awaitable: Awaitable[Any]) -> object:
    return await awaitable


class _TaskWriter(io.TextIOBase):
    """Has what an execution prints go to its own task's log, and anything else where it went."""

    def __init__(self, original: Any, hostcalls: Hostcalls, source: str) -> None:
        self._original = original
        self._hostcalls = hostcalls
        self._source = source
        self._begun: dict[Context, str] = {}
        self._lock = threading.RLock()  # a finalizer that prints may strike while it is held

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        context = current.get(None)
        if context is None or not Running.has(context):
            return int(self._original.write(text))
        with self._lock:
            *lines, rest = (self._begun.pop(context, "") + text).split("\n")
            if rest:
                self._begun[context] = rest + self._begun.pop(context, "")
        for line in lines:
            self._hostcalls.log(context, "info", line, source=self._source)
        return len(text)

    def flush(self) -> None:
        self._original.flush()

    def fileno(self) -> int:
        return int(self._original.fileno())

    @property
    def buffer(self) -> Any:
        """The bytes below, which nobody can tell apart by execution."""
        return self._original.buffer

    def end(self, context: Context) -> None:
        """Deliver a last line without an end."""
        with self._lock:
            rest = self._begun.pop(context, "")
        if rest:
            self._hostcalls.log(context, "info", rest, source=self._source)


class ParallelWorker(Worker):
    """See the module."""

    def __init__(self, environ: MutableMapping[str, str], connection: socket.socket) -> None:
        super().__init__(environ, connection)
        self._active: dict[int, Execution] = {}
        self._waiting: dict[str, list[int]] = {}
        """Execution id → requests of the node that wait for its end."""
        self._lock = threading.RLock()
        self._threads: set[threading.Thread] = set()
        self._writers = [
            _TaskWriter(getattr(sys, name), self._hostcalls, name) for name in ("stdout", "stderr")
        ]
        sys.stdout, sys.stderr = self._writers

    def _work(self) -> None:
        while True:
            while self._queue:
                self._start(self._queue.popleft())
            if self._stopping:
                break
            self._channel.read()
        self._channel.watch()  # answers and cancellations still come, and the node may die
        for thread in list(self._threads):
            thread.join()

    def _start(self, execution: Execution) -> None:
        with self._lock:
            self._active[execution.number] = execution
        thread = threading.Thread(target=self._execute, args=(execution,), daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as exc:  # the limit of memory or processes
            self._threads.discard(thread)
            self._answer(execution, self._failed_head(exc, execution.context), b"")
            self._forget(execution)

    def _known(self) -> list[Execution]:
        with self._lock:
            return [*self._queue, *self._active.values()]

    def _on_request(self, number: int, flags: int, call: Any, payload: f.Buffer) -> None:
        if call.get("method") != "ended":
            super()._on_request(number, flags, call, payload)
            return
        wanted = call["args"].get("execution_id", "")
        with self._lock:
            if any(known.context.execution_id == wanted for known in self._known()):
                self._waiting.setdefault(wanted, []).append(number)
                return
        self._channel.send(f.RESPONSE, number, b"\x80")

    def _execute(self, execution: Execution) -> None:
        context = execution.context
        current.set(context)  # of this thread, which nobody else uses
        Running.several.add(context)
        end_trace = continue_trace(context.trace)
        try:
            head, payload = self._run(execution)
        except BaseException as exc:  # barrier: the guest's code; sys.exit must not end the worker
            head, payload = self._failed_head(exc, context), b""
        finally:
            end_trace()
            for writer in self._writers:
                writer.end(context)
            Running.several.discard(context)
            self._streams.pop(execution.number, None)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        self._answer(execution, head, payload)
        self._forget(execution)
        self._threads.discard(threading.current_thread())

    def _forget(self, execution: Execution) -> None:
        with self._lock:
            self._active.pop(execution.number, None)
            waiting = self._waiting.pop(execution.context.execution_id, ())
        for number in waiting:
            self._channel.send(f.RESPONSE, number, b"\x80")

    def _backend(self, name: str, awaitable: Any) -> Any:
        with self._lock:
            if name != "trio":
                if name not in self._backends:
                    self._backends[name] = AsyncioThread()
                return self._backends[name]
            return super()._backend(name, awaitable)

    def _connect_logging(self) -> None:
        with self._lock:
            super()._connect_logging()

    def _usage_head(self) -> bytes:
        return _NO_USAGE
