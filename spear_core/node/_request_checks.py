"""What a request to invoke may say: how much, how long, and how deep in other calls."""

from __future__ import annotations

from operator import attrgetter

from spear_core.api import Artifact, ExecutionConfig, InvokeRequest
from spear_core.errors import InvalidRequestError, ResourceExhaustedError
from spear_core.node._task import Task

__all__ = ["check_depth", "check_sizes", "timeout_of"]

_LONGEST_FIELD = 1024
"""Characters of a function, a content type, a trace: together far less than a head holds."""
_SHORT_FIELDS = (
    "function", "content_type", "trace", "caller", "idempotency_key", "parent_task_id",
)  # fmt: skip
_short_fields = attrgetter(*_SHORT_FIELDS)
_MOST_CONTEXT = 8192
_LONGEST_TIMEOUT_S = 1e9


def check_sizes(request: InvokeRequest, config: ExecutionConfig) -> None:
    """**Raises** :exc:`~spear_core.errors.InvalidRequestError`."""
    most = config.max_input_bytes
    if len(request.payload) > most:
        raise InvalidRequestError(
            f"the input has {len(request.payload)} bytes; {most} are allowed "
            "(execution.max_input_bytes)"
        )
    if len("".join(_short_fields(request))) > _LONGEST_FIELD:  # one may be too long
        _refuse_long_field(request)
    if request.context:
        length = sum(len(key) + len(value) for key, value in request.context.items())
        if length > _MOST_CONTEXT:
            raise InvalidRequestError(
                f"context has {length} characters in all; at most {_MOST_CONTEXT} are allowed"
            )


def _refuse_long_field(request: InvokeRequest) -> None:
    for name, text in zip(_SHORT_FIELDS, _short_fields(request), strict=True):
        if len(text) > _LONGEST_FIELD:
            raise InvalidRequestError(
                f"{name} has {len(text)} characters; at most {_LONGEST_FIELD} are allowed"
            )


def check_depth(parent: Task, config: ExecutionConfig) -> None:
    """Whether a task may call another.

    **Raises** :exc:`~spear_core.errors.ResourceExhaustedError`.
    """
    most = config.max_call_depth
    if parent.depth >= most:
        raise ResourceExhaustedError(
            f"calls are nested too deep: task {parent.id} of {parent.function} is already"
            f" {parent.depth} deep, and {most} is the most (execution.max_call_depth); does a"
            " function call itself for ever?",
            retryable=False,
        )


def timeout_of(request: InvokeRequest, artifact: Artifact, config: ExecutionConfig) -> float:
    """Seconds that a task may take: as its caller says, else its artifact, else the node."""
    chosen = request.timeout_s if request.timeout_s is not None else artifact.timeout_s
    if chosen is None:
        return config.task_timeout_ms / 1000
    return _checked_timeout(chosen)


def _checked_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise InvalidRequestError(
            f"timeout_s must be a positive number of at most {_LONGEST_TIMEOUT_S:g}, "
            f"not {timeout_s}"
        )
    return timeout_s
