"""Tracers with one planted bug each, and the suite test that must catch it.

Run by ``test_mutants.py``, never by name. The docstring says what is wrong; the ``Sound…`` one is
without a bug and must pass everything.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs

from spear_core.api import ErrorInfo, PluginContext, SpanKind, Tracer, TracerSpec, TraceSpan
from spear_core.testing import TracerContract


@attrs.frozen
class NoConfig:
    pass


class ToySpan(TraceSpan):
    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def end(
        self,
        *,
        error: ErrorInfo | None = None,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> None:
        pass


class ToyTracer(Tracer):
    """Gives ids and sends nothing."""

    def context_of(self, parent: str) -> tuple[str, str]:
        """Trace and flags."""
        match = re.fullmatch(r"(?!ff)..-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", parent)
        if match and match[1].strip("0") and match[2].strip("0"):
            return match[1], match[3]
        return secrets.token_hex(16), "01"

    def own_id(self) -> str:
        return secrets.token_hex(8)

    def start(
        self,
        kind: SpanKind,
        name: str,
        *,
        parent: str,
        attributes: Mapping[str, str | int | float],
        started_at: float | None = None,
    ) -> TraceSpan:
        trace, flags = self.context_of(parent)
        return ToySpan(f"00-{trace}-{self.own_id()}-{flags}")


def tracer_spec(make: Callable[[], Tracer]) -> TracerSpec[Any]:
    @asynccontextmanager
    async def open_toy(context: PluginContext, config: NoConfig) -> AsyncIterator[Tracer]:
        yield make()

    return TracerSpec(name="toy", open=open_toy, config_cls=NoConfig)


class TestSoundTracer(TracerContract):
    spec = tracer_spec(ToyTracer)


class TestBeginsAnew(TracerContract):
    """A tracer that begins a new trace for every span."""

    caught_by = "test_a_span_belongs_to_its_parents_trace"

    class Planted(ToyTracer):
        def context_of(self, parent: str) -> tuple[str, str]:
            return secrets.token_hex(16), "01"

    spec = tracer_spec(Planted)


class TestSameId(TracerContract):
    """A tracer whose spans all have one id."""

    caught_by = "test_each_span_has_an_id_of_its_own"

    class Planted(ToyTracer):
        def own_id(self) -> str:
            return "00f067aa0ba902b8"

    spec = tracer_spec(Planted)


class TestAlwaysSamples(TracerContract):
    """A tracer that samples what its caller does not."""

    caught_by = "test_a_caller_that_does_not_sample_is_heard"

    class Planted(ToyTracer):
        def context_of(self, parent: str) -> tuple[str, str]:
            return super().context_of(parent)[0], "01"

    spec = tracer_spec(Planted)
