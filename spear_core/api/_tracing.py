"""Traces: what a node tells about a call to whoever puts the whole story together."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import attrs

from spear_core.api._execution import ErrorInfo
from spear_core.api._plugin import PluginContext

__all__ = ["SpanKind", "TraceSpan", "Tracer", "TracerSpec"]

C = TypeVar("C")


class SpanKind(enum.Enum):
    """What a span is about."""

    TASK = "task"
    """From the request to the result; its parent is the caller's span."""
    QUEUE = "queue"
    """Part of a task: from the request, or the end of the last attempt, to the instance."""
    EXECUTION = "execution"
    """Part of a task: one attempt with its instance; the guest's own spans are its children."""
    HOSTCALL = "hostcall"
    """Part of an execution: a service of the node at work for it."""


class TraceSpan(ABC):
    """Something that takes time, begun by :meth:`Tracer.start`."""

    traceparent: str
    """W3C ``traceparent`` with this span as the parent: for what is done on its behalf."""

    @abstractmethod
    def end(
        self,
        *,
        error: ErrorInfo | None = None,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """It is over, now. Called once, on the thread that started it; must not block.

        :param error: why it did not succeed. :param attributes: what is known only now.
        """


class Tracer(ABC):
    """Takes note of spans and sends them wherever they are wanted, on its own time.

    The node calls it in the middle of its work: a call takes microseconds, never waits for a disk
    or a network, and what can't be sent is dropped. A tracer that raises is not asked again.
    """

    @abstractmethod
    def start(
        self,
        kind: SpanKind,
        name: str,
        *,
        parent: str,
        attributes: Mapping[str, str | int | float],
        started_at: float | None = None,
    ) -> TraceSpan:
        """Begin a span.

        :param parent: W3C ``traceparent`` as it came, empty or malformed perhaps: then the span is
            the first of a new trace.
        :param started_at: seconds of the Unix epoch; ``None``: now.
        """


@attrs.frozen(kw_only=True)
class TracerSpec(Generic[C]):
    """Declares a tracer; returned by the hook ``spear_tracers``."""

    name: str
    open: Callable[[PluginContext, C], AbstractAsyncContextManager[Tracer | None]]
    """Traces while the block lasts, which is as long as tasks may run; ``None`` when its settings
    say that there is nothing to do, and then tracing costs nothing. Leaving the block sends what
    is left, for a few seconds at most."""
    config_cls: type[C]
    priority: int = 0
    """The node uses one tracer: of those installed, the one with the highest."""
    api: int = 1
