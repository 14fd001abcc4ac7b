"""What one execution has while its guest runs: input, output, log, context, time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spear_core.api import Artifact, ExecutionRequest, Hostcalls

from ._calls import CallTable
from ._ffi import GuestStopError
from ._objects import ObjectCalls
from ._slice import Meter

if TYPE_CHECKING:
    from ._streams import GuestStream

MAX_LOG_ENTRIES = 2048
"""Entries kept between two time slices; the newest win (guest ABI, section 4)."""
MAX_LINE = 16384
STDERR_TAIL = 20


class ExitError(GuestStopError):
    """The guest called `proc_exit`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exited with code {code}")
        self.code = code


class OutputLimitError(GuestStopError):
    """The guest wrote more than its output may have."""


class Execution:
    """The state behind the host functions of one execution. Only that guest's calls touch it."""

    __slots__ = (
        "_calls", "_environment", "_hostcalls", "_objects", "_partial", "_stderr_tail", "_written",
        "artifact", "content_type", "has_waited", "input_position", "max_output", "meter", "output",
        "request", "started", "started_wall", "stdio_is_payload", "stream",
    )  # fmt: skip

    def __init__(
        self, request: ExecutionRequest, artifact: Artifact, hostcalls: Hostcalls, *,
        max_output: int, stdio_is_payload: bool, stream: GuestStream | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._hostcalls = hostcalls
        self._environment = artifact.env if environment is None else environment
        self.stream = stream
        """Where its input and output go piece by piece; None: it has its input whole."""
        self.request = request
        self.artifact = artifact
        self.max_output = max_output
        self.stdio_is_payload = stdio_is_payload
        """Whether fd 0 is the input and fd 1 the output; otherwise fd 1 goes to the log."""
        self.started = time.monotonic_ns()
        self.started_wall = time.time()
        self.input_position = 0
        self.output = bytearray()
        self.content_type: str | None = None
        self.meter = Meter(artifact.limits.cpu_seconds)
        # Most executions say nothing, and need none of these.
        self._written: deque[tuple[str, str, str]] | None = None
        self._stderr_tail: deque[str] | None = None
        self._partial: dict[str, bytes] | None = None
        self._calls: CallTable | None = None
        self._objects: ObjectCalls | None = None
        self.has_waited = False
        """For a host function, once or more."""

    @property
    def calls(self) -> CallTable:
        """Other functions that it has called."""
        if self._calls is None:
            self._calls = CallTable(
                self._hostcalls,
                self.request.execution_id,
                lambda line: self.add_log(line, "warn", "node"),
            )
        return self._calls

    @property
    def has_spoken(self) -> bool:
        """Whether something of its log may still have to go to the node."""
        return bool(self._written or self._partial)

    @property
    def stderr_tail(self) -> Sequence[str]:
        """The last lines of its stderr."""
        return self._stderr_tail or ()

    @property
    def objects(self) -> ObjectCalls:
        """What it does with objects."""
        if self._objects is None:
            self._objects = ObjectCalls(
                self._hostcalls,
                self.request.execution_id,
                lambda line: self.add_log(line, "warn", "node"),
            )
        return self._objects

    def add_log(self, message: str, level: str, source: str = "guest") -> None:
        if self._written is None:
            self._written = deque(maxlen=MAX_LOG_ENTRIES)
        self._written.append((message, level, source))
        self.meter.urgent = True

    def add_lines(self, data: bytes, level: str, source: str) -> None:
        """Bytes of a stream; whole lines become entries, the rest waits."""
        if self._partial is None:
            self._partial = {}
        *lines, rest = (self._partial.get(source, b"") + data).split(b"\n")
        while len(rest) > MAX_LINE:
            lines.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._partial[source] = rest
        for line in lines:
            text = line.decode("utf-8", "replace")
            if source == "stderr":
                if self._stderr_tail is None:
                    self._stderr_tail = deque(maxlen=STDERR_TAIL)
                self._stderr_tail.append(text)
            self.add_log(text, level, source)

    def end_lines(self) -> None:
        """At the end: what had no newline yet."""
        for source, level in (("stdout", "info"), ("stderr", "error")):
            if self._partial and self._partial.get(source):
                self.add_lines(b"\n", level, source)

    def between_slices(self) -> None:
        """On the trio thread, while the guest lies still. Raises CpuLimitError."""
        if self.meter.urgent:
            self.flush()
        self.meter.check()

    def flush(self) -> None:
        """Hand the log to the node."""
        self.meter.urgent = False
        log, written, execution_id = self._hostcalls.log, self._written, self.request.execution_id
        while written:
            message, level, source = written.popleft()
            log(execution_id, message, level=level, source=source)

    @property
    def input_left(self) -> int:
        """Bytes of stdin that are there and not yet read."""
        if self.stream is not None:
            return self.stream.available
        return len(self.request.payload) - self.input_position

    @property
    def room(self) -> int:
        """Bytes that the output may still grow by."""
        return self.max_output - len(self.output)

    def context(self, name: str) -> str | None:
        """A fact about this execution, or None for an unknown name."""
        request = self.request
        if name == "deadline_ms":
            if request.deadline_s is None:
                return None
            return str(int((self.started_wall + request.deadline_s) * 1000))
        if name.startswith("env."):
            return self._environment.get(name[4:])
        if name.startswith("context."):
            return request.context.get(name[8:])
        facts = {
            "execution_id": request.execution_id,
            "task_id": request.task_id,
            "attempt": str(request.attempt),
            "artifact": self.artifact.ref,
            "trace": request.trace,
            "mode": "invoke" if self.stream is None else "stream",
        }
        return facts.get(name)

    def monotonic_ns(self) -> int:
        """Nanoseconds since it started: a guest has no business with the host's uptime."""
        return time.monotonic_ns() - self.started


def random_i64() -> int:
    return int.from_bytes(os.urandom(8), "little", signed=True)
