"""Serves a node: loads the user's file and runs its functions, one execution at a time."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from struct import Struct

from spear_sdk import _frames as f
from spear_sdk._channel import WorkerChannel, connect
from spear_sdk._chunks import Collected, Outputs, is_output_stream
from spear_sdk._context import Context, Running, current
from spear_sdk._entry import Entry
from spear_sdk._errors import FunctionError, LoadError, OutputError, TaskCancelledError
from spear_sdk._execution import Execution
from spear_sdk._hostcalls import Hostcalls
from spear_sdk._load import add_packages, find_entry, load_module
from spear_sdk._msgpack import pack, unpack
from spear_sdk._output import encode_output
from spear_sdk._report import error_of, traceback_of
from spear_sdk._stream import MAX_CHUNK, WorkerStream
from spear_sdk._tracing import continue_trace
from spear_sdk._usage import Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import MutableMapping
    from types import ModuleType
    from typing import Any


__all__ = ["main", "run_worker"]

_AGENT = "spear-sdk/0.1.0"
_REQUIRED = ("SPEAR_CHANNEL", "SPEAR_INSTANCE_ID", "SPEAR_ARTIFACT_FILE")
_F64, _U64 = Struct(">Bd"), Struct(">BQ")
_USAGE = pack("usage") + b"\x82" + pack("cpu_seconds")
_PEAK = pack("peak_memory_bytes")


class Worker:
    """One worker of one artifact, for the life of its channel."""

    def __init__(self, environ: MutableMapping[str, str], connection: socket.socket) -> None:
        self._instance_id = environ["SPEAR_INSTANCE_ID"]
        self._artifact = environ.get("SPEAR_ARTIFACT", "")
        self._path = environ["SPEAR_ARTIFACT_FILE"]
        self._shown_as = environ.get("SPEAR_ARTIFACT_FILENAME") or os.path.basename(self._path)
        self._root = environ.get("SPEAR_ARTIFACT_ROOT", "")
        self._packages = environ.get("SPEAR_SITE_PACKAGES", "")
        self._default_entry = environ.get("SPEAR_ENTRY", "")
        self._channel = WorkerChannel(connection, self._on_frame)
        self._hostcalls = Hostcalls(self._channel)
        self._module: ModuleType
        self._load_error: LoadError | None = None
        self._load_traceback = ""
        self._entries: dict[str, Entry] = {}
        self._queue: deque[Execution] = deque()
        self._running: Execution | None = None
        self._streams: dict[int, WorkerStream] = {}
        self._stopping = False
        self._backends: dict[str, Any] = {}
        self._logging_ready = False
        self._usage = Usage()
        self._completed_heads: dict[str, bytes] = {}

    def serve(self, secret: str) -> None:
        """Introduce this worker, load the user's file and serve until the node says shutdown.

        Raises: ConnectionError, ProtocolError.
        """
        self._channel.handshake(
            {
                "v": 1,
                "role": "instance",
                "instance": self._instance_id,
                "secret": bytes.fromhex(secret),
                "pid": os.getpid(),
                "agent": _AGENT,
            }
        )
        self._channel.watch()
        self._load()
        self._channel.unwatch()
        self._usage.take()
        self._work()
        self._channel.watch()  # the node may die while the backends end
        for backend in self._backends.values():
            backend.close()

    def _work(self) -> None:
        """Execute what comes until the node says shutdown."""
        while self._queue or not self._stopping:
            if self._queue:
                self._execute(self._queue.popleft())
                continue
            for backend in self._backends.values():
                backend.idle(self._channel.fileno())
            self._channel.read()

    def _load(self) -> None:
        try:
            if self._packages:
                add_packages(self._packages)
            self._module = load_module(self._path, self._shown_as, self._root)
        except BaseException as exc:  # barrier: the guest's code, which may even call sys.exit
            message = f"{type(exc).__name__}: {exc}".removesuffix(": ")
            if isinstance(exc, ModuleNotFoundError):
                message += (
                    "; modules beside the file come here with a spear.toml, packages when they are "
                    f"among its requirements or are installed for {sys.executable}"
                )
            self._load_error = LoadError(f"{self._shown_as} cannot be loaded: {message}")
            self._load_traceback = traceback_of(exc)
        self._connect_logging()

    def _connect_logging(self) -> None:
        """Give standard logging its way into the task's log once something has imported it."""
        if not self._logging_ready and "logging" in sys.modules:
            self._logging_ready = True
            from spear_sdk._logging import install

            install()

    # What arrives. Called by whoever reads the channel, also while user code runs.

    def _on_frame(self, frame: f.Frame) -> None:
        kind, flags, number, head, payload = frame
        if kind == f.REQUEST:
            self._on_request(number, flags, unpack(head), payload)
        elif kind == f.DATA:
            if (stream := self._streams.get(number)) is not None:
                stream.on_data(flags, payload)
        elif kind == f.CREDIT:
            if (stream := self._streams.get(number)) is not None:
                credit: Any = unpack(head)
                stream.on_credit(credit["bytes"])
        elif kind == f.CANCEL:
            self._on_cancel(number)
        elif kind == f.RESPONSE:
            self._hostcalls.on_response(number, flags, head, payload)
        elif kind == f.GOAWAY:
            self._stopping = True
        elif kind == f.NOTICE:
            notice: Any = unpack(head)
            if notice.get("method") == "shutdown":
                self._stopping = True

    def _on_request(self, number: int, flags: int, call: Any, payload: f.Buffer) -> None:
        method = call.get("method")
        if method == "execute" and not flags & f.STREAM:
            request = call["args"]
            self._queue.append(Execution(number, request, payload, self._make_context(request)))
        elif method == "stream" and flags & f.STREAM:
            request = call["args"]
            stream = self._streams[number] = WorkerStream(self._channel, number)
            context = self._make_context(request)
            self._queue.append(Execution(number, request, payload, context, stream))
        elif method == "health":
            self._channel.send(f.RESPONSE, number, b"\x80")
        else:
            what = f"{'streams of ' if flags & f.STREAM else ''}the method {method!r}"
            self._refuse(number, "unimplemented", f"this agent does not serve {what}")

    def _on_cancel(self, number: int) -> None:
        for execution in self._known():
            if execution.number == number:
                in_loop = execution.cancel()
                self._hostcalls.cancel(execution.context, only_blocking=in_loop)

    def _known(self) -> list[Execution]:
        """What waits or runs."""
        running = self._running
        return [*self._queue, *(() if running is None else (running,))]

    def _refuse(self, number: int, code: str, message: str) -> None:
        name = "TaskCancelledError" if code == "cancelled" else "InvalidRequestError"
        head = {"name": name, "code": code, "message": message, "retryable": False}
        self._channel.send(f.RESPONSE, number, pack(head), flags=f.ERROR)

    # Executions, on the main thread.

    def _make_context(self, request: dict[str, Any]) -> Context:
        deadline = request.get("deadline_s")
        return Context(
            self._hostcalls,
            task_id=request.get("task_id", ""),
            execution_id=request.get("execution_id", ""),
            attempt=request.get("attempt", 1),
            instance_id=self._instance_id,
            artifact=self._artifact,
            deadline=None if deadline is None else time.monotonic() + deadline,
            trace=request.get("trace") or "",
            given=request.get("context") or {},
        )

    def _execute(self, execution: Execution) -> None:
        context = Running.context = execution.context
        token = current.set(context)
        end_trace = continue_trace(context.trace)
        self._usage.restart()
        self._running = execution
        self._channel.watch()
        try:
            head, payload = self._run(execution)
        except BaseException as exc:  # barrier: the guest's code; sys.exit must not end the worker
            head, payload = self._failed_head(exc, context), b""
        finally:
            self._channel.unwatch()
            self._streams.pop(execution.number, None)
            self._running = Running.context = None
            end_trace()
            current.reset(token)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # the guest may close it
            sys.stdout.flush()
        self._answer(execution, head, payload)

    def _answer(self, execution: Execution, head: bytes, payload: f.Buffer) -> None:
        """Send it; an empty head says that it was cancelled."""
        if head:
            self._channel.send(f.RESPONSE, execution.number, head, payload)
        else:
            self._refuse(execution.number, "cancelled", "the task was cancelled")

    def _run(self, execution: Execution) -> tuple[bytes, f.Buffer]:
        execution.context.raise_if_cancelled()
        entry = self._entries.get(execution.entry) or self._find_entry(execution.entry)
        stream = execution.stream
        if stream is not None and not entry.takes_chunks:
            execution.payload = stream.receive_all(execution.max_input)
        value = entry.call(execution.payload, execution.content_type, execution.context, stream)
        if hasattr(type(value), "__await__"):
            value = self._backend(entry.backend, value).run(value, execution)
        self._connect_logging()
        output, content_type = self._output_of(value, entry, execution)
        if len(output) > self._channel.max_payload:
            raise OutputError(
                f"the function returned {len(output)} bytes; "
                f"the node takes at most {self._channel.max_payload}",
                code="resource_exhausted",
            )
        start = self._completed_heads.get(content_type)
        if start is None:
            start = self._completed_heads[content_type] = _completed_head(content_type)
        return start + self._usage_head(), output

    def _output_of(self, value: Any, entry: Entry, execution: Execution) -> tuple[f.Buffer, str]:
        """What is left to answer, and its type, once a stream has got its chunks."""
        stream = execution.stream
        if not is_output_stream(value):
            output, content_type = encode_output(value)
            if stream is not None:
                for at in range(0, len(output), MAX_CHUNK):
                    stream.send(output[at : at + MAX_CHUNK])
                output = b""
            return output, content_type
        collected = Collected(self._channel.max_payload)
        outputs = Outputs(collected if stream is None else stream)
        if hasattr(type(value), "__anext__"):
            sending = outputs.asend_all(value)
            self._backend(entry.backend, sending).run(sending, execution)
        else:
            outputs.send_all(value)
        return b"".join(collected.chunks), outputs.told_type

    def _find_entry(self, name: str) -> Entry:
        if self._load_error is not None:
            raise self._load_error
        fn = find_entry(self._module, name or self._default_entry, self._shown_as)
        entry = self._entries[name] = Entry(fn)
        return entry

    def _backend(self, name: str, awaitable: Any) -> Any:
        backend = self._backends.get(name)
        if backend is None:
            from spear_sdk import _backends

            make = _backends.TrioBackend if name == "trio" else _backends.AsyncioBackend
            try:
                backend = self._backends[name] = make()
            except FunctionError:
                awaitable.close()
                raise
        return backend

    def _failed_head(self, exc: BaseException, context: Context) -> bytes:
        """The head of the answer to a failure; empty for a cancellation."""
        if isinstance(exc, TaskCancelledError) and context.cancelled:
            return b""
        if isinstance(exc, LoadError):
            self._hostcalls.log(context, "error", self._load_traceback)
        elif not isinstance(exc, FunctionError):
            self._hostcalls.log(context, "error", traceback_of(exc))
        failed = {"status": "failed", "error": error_of(exc)}
        return b"\x83" + pack(failed)[1:] + self._usage_head()

    def _usage_head(self) -> bytes:
        """The `usage` of a head: what the process has used for this execution."""
        cpu_seconds, peak_bytes = self._usage.take()
        return _USAGE + _F64.pack(0xCB, cpu_seconds) + _PEAK + _U64.pack(0xCF, peak_bytes)


def _completed_head(content_type: str) -> bytes:
    return b"\x83" + pack({"status": "completed", "content_type": content_type})[1:]


def run_worker(
    channel: socket.socket | str, environ: MutableMapping[str, str] | None = None
) -> int:
    """Serve a node on this channel until it says shutdown; returns the exit code.

    Call it from the main thread. Ends the process at once when the node goes away.

    :param channel: a connected socket, or the node's address. :param environ: the variables of
        an agent; the secret is taken out of it.
    """
    environ = os.environ if environ is None else environ
    secret = environ.pop("SPEAR_CHANNEL_SECRET", "")
    missing = [name for name in _REQUIRED if not environ.get(name)]
    if missing or not secret:
        names = ", ".join(missing or ["SPEAR_CHANNEL_SECRET"])
        return _complain(f"{names} not set. A node starts this worker; use `spear run FILE`.", 2)
    _set_up_streams()
    try:
        connection = connect(channel) if isinstance(channel, str) else channel
        worker = Worker
        if int(environ.get("SPEAR_CONCURRENCY") or 1) > 1:
            from spear_sdk._parallel import ParallelWorker

            worker = ParallelWorker
        worker(environ, connection).serve(secret)
    except (OSError, ValueError, f.ProtocolError) as exc:
        return _complain(f"the worker cannot serve the node: {exc}", 1)
    return 0


def _complain(message: str, code: int) -> int:
    print(f"spear_sdk.worker: {message}", file=sys.stderr, flush=True)
    return code


def _set_up_streams() -> None:
    """Let what the function prints reach the log line by line."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True, write_through=False)


def main() -> int:
    """Run the worker that the environment describes; returns the exit code."""
    return run_worker(os.environ.get("SPEAR_CHANNEL", ""))
