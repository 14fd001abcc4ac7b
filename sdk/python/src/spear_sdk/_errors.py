"""What a function may raise, and what the SDK raises into it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = [
    "BadFunctionError",
    "EntryNotFoundError",
    "FunctionError",
    "HostcallError",
    "InvalidInputError",
    "LoadError",
    "ObjectConflictError",
    "ObjectForbiddenError",
    "ObjectNotFoundError",
    "OutputError",
    "StoreFullError",
    "TaskCancelledError",
    "hostcall_error",
]


class FunctionError(Exception):
    """Raise it to fail on purpose: the caller gets the message, no traceback is logged.

    :param message: one line for the caller.
    :param code: a gRPC status name in lower case, such as ``not_found``.
    :param details: short facts by name.
    """

    code = "unknown"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.details: dict[str, str] = dict(details or {})


class InvalidInputError(FunctionError):
    """The input is not what the function takes; the SDK raises it, and a function may."""

    code = "invalid_argument"


class EntryNotFoundError(FunctionError):
    """The module has no such function, or it isn't clear which one is meant."""

    code = "not_found"


class LoadError(FunctionError):
    """The user's file cannot be imported."""

    code = "failed_precondition"


class BadFunctionError(FunctionError):
    """The function's parameters are none that SPEAR can fill."""

    code = "failed_precondition"


class OutputError(FunctionError):
    """What the function returned is nothing that can be sent."""


class HostcallError(Exception):
    """The node refused a hostcall, or the hostcall failed there.

    :param name: the class of the node's error, such as ``ObjectNotFoundError``.
    :param code: a gRPC status name in lower case.
    :param retryable: whether the same call may be tried again.
    """

    task_id = ""
    """The task that failed, when another function was called."""
    kind = ""
    """That function's own word for it, such as the class of its exception."""

    def __init__(
        self, message: str, *, name: str = "", code: str = "unknown", retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.name = name
        self.code = code
        self.retryable = retryable
        self.details: dict[str, str] = {}
        """Short facts by name, as that function gave them."""


class ObjectNotFoundError(HostcallError):
    """There is no such object, or no longer this version of it."""


class ObjectConflictError(HostcallError):
    """The object is not what was expected: somebody else wrote it first."""

    current = 0
    """Its version now; 0: it does not exist."""


class ObjectForbiddenError(HostcallError):
    """The key is neither this artifact's own nor granted to it."""


class StoreFullError(HostcallError):
    """The node's store has no room for the value."""


_BY_NAME = {
    error.__name__: error
    for error in (ObjectConflictError, ObjectForbiddenError, ObjectNotFoundError, StoreFullError)
}


def hostcall_error(head: Any) -> HostcallError:
    """The error that the head of an answer describes."""
    name = head.get("name", "")
    error = _BY_NAME.get(name, HostcallError)(
        head.get("message", ""),
        name=name,
        code=head.get("code", "unknown"),
        retryable=head.get("retryable", False),
    )
    error.task_id = head.get("task_id", "")
    error.kind = head.get("kind", "")
    error.details = head.get("details", {})
    if isinstance(error, ObjectConflictError):
        error.current = head.get("current") or 0
    return error


class TaskCancelledError(BaseException):
    """The task was cancelled. Not an ``Exception``, so that a broad handler lets it pass."""
