"""The node's trace, for functions that use OpenTelemetry themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["continue_trace"]


def _nothing() -> None:
    """There is nothing to undo."""


def continue_trace(traceparent: str) -> Callable[[], None]:
    """Make the caller's trace the current one; returns what undoes it.

    Does nothing unless the function's code has imported ``opentelemetry``: who doesn't use it pays
    nothing. Whatever version of it is there, an execution does not fail for its trace.
    """
    if not traceparent or "opentelemetry.trace" not in sys.modules:
        return _nothing
    try:
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {"traceparent": traceparent}
        token = context.attach(TraceContextTextMapPropagator().extract(carrier))
    except Exception:  # barrier: a library of the function's, in a version we do not know
        return _nothing
    return lambda: context.detach(token)
