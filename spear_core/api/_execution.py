"""One execution: what goes in, what comes out."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from spear_core.api._artifact import IsolationLevel

__all__ = [
    "ErrorInfo",
    "ExecutionRequest",
    "ExecutionResponse",
    "ExecutionStatus",
    "ExecutionUsage",
]


class ExecutionStatus(enum.Enum):
    """How an execution ended."""

    COMPLETED = "completed"
    FAILED = "failed"


@attrs.frozen(kw_only=True)
class ErrorInfo:
    """Why an execution failed, as the guest or its runtime tells it."""

    code: str
    """A gRPC status name in lower case: ``unknown`` for an exception or a trap in the guest's
    code, ``resource_exhausted`` for a limit it hit, ``invalid_argument`` for input it refuses."""
    message: str
    """One line: what happened and where, when known."""
    kind: str = ""
    """The guest's own word for it: an exception class, a trap code, ``exit``, ``signal``."""
    details: Mapping[str, str] = attrs.field(factory=dict)
    """Short facts by name, such as ``exit_code``, ``signal``, ``stderr`` (its last lines),
    ``trap``, ``function``."""


@attrs.frozen(kw_only=True)
class ExecutionUsage:
    """What an execution used, as far as its runtime can tell (``None``: it cannot)."""

    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    isolation: IsolationLevel | None = None
    """The level that was in force."""


@attrs.frozen(kw_only=True)
class ExecutionRequest:
    """One attempt to run a task on an instance."""

    execution_id: str
    task_id: str
    attempt: int = 1
    entry: str = ""
    """Entry point within the artifact; empty means the artifact's default."""
    payload: bytes = b""
    content_type: str = "application/octet-stream"
    deadline_s: float | None = None
    """Seconds from now until the task's deadline, for the guest to see; the caller enforces it."""
    trace: str = ""
    """W3C ``traceparent``, or empty."""
    context: Mapping[str, str] = attrs.field(factory=dict)
    """What the caller said beside the input."""


@attrs.frozen(kw_only=True)
class ExecutionResponse:
    """How one execution ended; a failure of the guest's own code is one way to end."""

    status: ExecutionStatus
    payload: bytes = b""
    content_type: str = "application/octet-stream"
    error: ErrorInfo | None = None
    """Set exactly when ``status`` is ``FAILED``."""
    usage: ExecutionUsage = ExecutionUsage()

    @classmethod
    def completed(
        cls, payload: bytes, *, content_type: str = "application/octet-stream"
    ) -> ExecutionResponse:
        """A success with this output."""
        return cls(status=ExecutionStatus.COMPLETED, payload=payload, content_type=content_type)

    @classmethod
    def failed(cls, error: ErrorInfo) -> ExecutionResponse:
        """A failure with this reason."""
        return cls(status=ExecutionStatus.FAILED, error=error)
