"""Sending spans away from the node's own thread.

The SDK's own batch processor drops silently what does not fit; an operator should be able to see
how much. Ours counts, says so in the node's log, and never lets the node wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from logging import Logger

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

__all__ = ["BoundedExport"]

_BATCH = 512
_COMPLAIN_AGAIN_S = 60.0


class BoundedExport(SpanProcessor):
    """Queues ended spans and exports them in a thread; drops, and counts, what is too many."""

    def __init__(
        self, exporter: SpanExporter, *, most: int, interval_s: float, log: Logger
    ) -> None:
        self._exporter = exporter
        self._most = most
        self._interval_s = interval_s
        self._log = log
        self._queue: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._complained_at = -_COMPLAIN_AGAIN_S
        self.exported = 0
        self.dropped = 0
        """Those that the queue had no room for."""
        self.failed = 0
        """Those that the collector did not take."""
        self._told = 0
        self._thread = threading.Thread(target=self._run, name="spear-otel-export", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do before a span ends."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span; never waits."""
        context = span.context
        if context is None or not context.trace_flags.sampled:
            return
        if len(self._queue) >= self._most:
            self.dropped += 1
            return
        self._queue.append(span)
        if len(self._queue) >= _BATCH:
            self._wake.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(self._interval_s)
            self._wake.clear()
            self._export_queued()

    def _export_queued(self) -> None:
        for _ in range(-(-len(self._queue) // _BATCH)):
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self._export(batch)
            if self._closing.is_set():
                break
        self._complain()

    def _export(self, batch: Sequence[ReadableSpan]) -> None:
        try:
            taken = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:  # barrier: one batch
            taken = False
        if taken:
            self.exported += len(batch)
        else:
            self.failed += len(batch)

    def _complain(self) -> None:
        lost = self.dropped + self.failed
        if lost > self._told and time.monotonic() - self._complained_at >= _COMPLAIN_AGAIN_S:
            self._log.warning(
                "%d spans were lost so far: %d did not fit into the queue (max_queued_spans), "
                "%d were not taken by the collector",
                *(lost, self.dropped, self.failed),
            )
            self._told = lost
            self._complained_at = time.monotonic()

    def close(self, patience_s: float) -> None:
        """Send what is left, for so long at most; blocks."""
        give_up = time.monotonic() + patience_s
        self._closing.set()
        self._wake.set()
        self._thread.join(patience_s)
        while self._queue and not self._thread.is_alive() and time.monotonic() < give_up:
            last = threading.Thread(target=self._export_queued, daemon=True)
            last.start()
            last.join(max(0.0, give_up - time.monotonic()))
            if last.is_alive():
                break
        self.failed += len(self._queue)
        self._queue.clear()
        self._complained_at = -_COMPLAIN_AGAIN_S
        self._complain()
        self._exporter.shutdown()
