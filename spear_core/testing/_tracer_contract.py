"""The contract suite for tracers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from spear_core.api import ErrorInfo, SpanKind, Tracer, TracerSpec, TraceSpan
from spear_core.testing._fakes import make_context

__all__ = ["TracerContract"]

_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_CALLER = f"00-{_TRACE}-00f067aa0ba902b7-01"
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_MALFORMED = (
    "", "nonsense", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{_TRACE}-{'0' * 16}-01",
    f"ff-{_TRACE}-00f067aa0ba902b7-01", "00-" * 300, "\0\n",
)  # fmt: skip


def _ids(span: TraceSpan) -> tuple[str, str]:
    match = _TRACEPARENT.fullmatch(span.traceparent)
    assert match, f"{span.traceparent!r} is no traceparent of version 00"
    trace, own = match[1], match[2]
    assert trace.strip("0")
    assert own.strip("0")
    return trace, own


class TracerContract:
    """What every tracer promises. Subclass it, set :attr:`spec` and a :attr:`config` that traces::

    class TestFile(TracerContract):
        spec = SPEC
        config = FileTracerConfig(path="/dev/null")
    """

    spec: ClassVar[TracerSpec[Any]]
    """The tracer under test."""
    config: ClassVar[Any] = None
    """Its configuration; ``None``: the defaults. It must be one with which there is a tracer. What
    it sends to need not be there."""
    patience: ClassVar[float] = 30.0
    """Seconds after which closing the tracer has failed."""

    @asynccontextmanager
    async def open_tracer(self, folder: Path) -> AsyncIterator[Tracer]:
        """The tracer, as a node opens it. Override it to open yours in another way."""
        config = self.spec.config_cls() if self.config is None else self.config
        with trio.fail_after(self.patience):
            async with self.spec.open(make_context(folder), config) as tracer:
                assert tracer is not None, "the suite needs a config with which there is a tracer"
                yield tracer

    def _start(self, tracer: Tracer, *, parent: str = _CALLER, **options: Any) -> TraceSpan:
        return tracer.start(SpanKind.TASK, "f@1", parent=parent, attributes={"n": 1}, **options)

    @pytest.mark.trio
    async def test_a_span_belongs_to_its_parents_trace(self, tmp_path: Path) -> None:
        """What is done on behalf of a span is in the trace that its parent named."""
        async with self.open_tracer(tmp_path) as tracer:
            task = self._start(tracer)
            run = self._start(tracer, parent=task.traceparent)
            assert _ids(task)[0] == _ids(run)[0] == _TRACE
            run.end()
            task.end()

    @pytest.mark.trio
    async def test_each_span_has_an_id_of_its_own(self, tmp_path: Path) -> None:
        """Siblings and children can be told apart, and from their parent."""
        async with self.open_tracer(tmp_path) as tracer:
            spans = [self._start(tracer) for _ in range(100)]
            spans += [self._start(tracer, parent=spans[0].traceparent)]
            assert len({_ids(span)[1] for span in spans} - {"00f067aa0ba902b7"}) == len(spans)
            for span in spans:
                span.end()

    @pytest.mark.trio
    @pytest.mark.parametrize("parent", _MALFORMED)
    async def test_a_parent_that_is_none_begins_a_new_trace(
        self, tmp_path: Path, parent: str
    ) -> None:
        """A caller may send anything as its trace; nothing of it goes on."""
        async with self.open_tracer(tmp_path) as tracer:
            first, second = self._start(tracer, parent=parent), self._start(tracer, parent=parent)
            assert _ids(first)[0] != _ids(second)[0]
            assert _TRACE not in (_ids(first)[0], _ids(second)[0])
            first.end()
            second.end()

    @pytest.mark.trio
    async def test_every_kind_and_every_end_is_taken(self, tmp_path: Path) -> None:
        """Each kind of span, begun in the past or now, with or without an error and attributes."""
        error = ErrorInfo(code="unknown", message="boom \ud800", kind="ValueError")
        async with self.open_tracer(tmp_path) as tracer:
            for kind in SpanKind:
                for fault in (None, error):
                    span = tracer.start(
                        kind, "näme", parent=_CALLER, attributes={"a": "b", "n": 1, "f": 0.5},
                        started_at=1_700_000_000.0,
                    )  # fmt: skip
                    span.end(error=fault, attributes={"late": 2})

    @pytest.mark.trio
    async def test_a_caller_that_does_not_sample_is_heard(self, tmp_path: Path) -> None:
        """The caller's decision goes on to the guest."""
        async with self.open_tracer(tmp_path) as tracer:
            span = self._start(tracer, parent=_CALLER[:-1] + "0")
            assert _ids(span)[0] == _TRACE
            assert span.traceparent.endswith("-00")
            span.end()

    @pytest.mark.trio
    async def test_a_span_that_never_ends_keeps_nothing_open(self, tmp_path: Path) -> None:
        """The node may be killed in the middle of anything: closing waits for no span."""
        async with self.open_tracer(tmp_path) as tracer:
            self._start(tracer)

    @pytest.mark.trio
    async def test_it_can_be_opened_again(self, tmp_path: Path) -> None:
        """A node that is started again in one process traces again."""
        for _ in range(2):
            async with self.open_tracer(tmp_path) as tracer:
                self._start(tracer).end()
