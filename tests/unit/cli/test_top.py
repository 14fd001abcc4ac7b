"""``spear top``: what the figures mean, and that it ends."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from spear_core.api import ArtifactMetrics, ExecutionMetrics, Histogram, NodeMetrics
from spear_core.cli import _rates
from spear_core.cli._rates import History, quantile
from spear_core.cli._terminal import visible
from spear_core.cli._top_screen import screen

BOUNDS = (0.001, 0.01, 0.1)


def times(*counts: int) -> Histogram:
    return Histogram(bounds_s=BOUNDS, counts=counts)


NONE = times(0, 0, 0, 0)


def executions(**values: Any) -> ExecutionMetrics:
    return ExecutionMetrics(**{"execution_time": NONE, "queue_time": NONE, **values})


def node_with(*artifacts: ArtifactMetrics, **values: Any) -> NodeMetrics:
    total = artifacts[0].metrics if artifacts else executions()
    defaults = {"node_id": "n-1", "version": "9.8.7", "started_at": time.time() - 100.0}
    return NodeMetrics(**{**defaults, "total": total, "artifacts": artifacts, **values})


def set_clock(monkeypatch: pytest.MonkeyPatch, *moments: float) -> None:
    clock = SimpleNamespace(monotonic=iter(moments).__next__, time=lambda: 1e9)
    monkeypatch.setattr(_rates, "time", clock)


BUSY = ArtifactMetrics(
    artifact="echo@1",
    metrics=executions(
        total_executions=200,
        successful_executions=190,
        failed_executions=10,
        running=3,
        queue_length=4,
        active_instances=5,
        cold_starts=20,
        warm_starts=180,
        cpu_seconds=50.0,
        execution_time=times(0, 100, 100, 0),
    ),
    memory_bytes=64 << 20,
)


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ((0, 0, 0, 0), 0.5, None),
        ((10, 0, 0, 0), 0.5, 0.0005),
        ((0, 10, 10, 0), 0.5, 0.01),
        ((0, 10, 10, 0), 0.95, 0.091),
        ((1, 0, 0, 99), 0.5, 0.1),
    ],
)
def test_a_quantile_lies_within_its_range(
    counts: tuple[int, ...], share: float, seconds: float | None
) -> None:
    found = quantile(times(*counts), share)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_a_histogram_that_is_not_kept_has_no_quantile_to_show() -> None:
    assert quantile(Histogram(bounds_s=(), counts=(0,)), 0.5) is None


def test_in_a_pipe_it_prints_once_the_figures_since_the_start(spear: Any, node: Any) -> None:
    node.measured = [node_with(BUSY, rejected=7, errors=(("unavailable", 10),))]
    told = spear("top")
    assert (told.code, told.err) == (0, "")
    lines = told.text.splitlines()
    assert lines[0].startswith("node n-1 (spear 9.8.7), up 100s")
    assert lines[2] == "running 3, queued 4, instances 5, refused 7"
    assert lines[3] == "errors: unavailable 10"
    assert lines[-1].split() == [
        *("echo@1", "2.0", "3", "4", "10ms", "91ms", "10", "10%", "5", "50%", "64", "M")
    ]
    assert max(map(len, lines)) <= 80


def test_nothing_yet(spear: Any, node: Any) -> None:
    node.measured = [node_with()]
    told = spear("top", "--once")
    assert (told.code, told.err) == (0, "nothing has been executed yet\n")
    assert "errors: none" in told.text


def test_json_is_the_nodes_metrics(spear: Any, node: Any) -> None:
    node.measured = [node_with(BUSY)]
    shown = json.loads(spear("top", "--json").out)
    assert shown["artifacts"][0]["metrics"]["execution_time"]["counts"] == [0, 100, 100, 0]
    assert shown["total"]["cold_starts"] == 20


def test_live_figures_are_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(span_s=10)
    set_clock(monkeypatch, 0.0, 2.0)
    later = attrs.evolve(
        BUSY.metrics,
        total_executions=220,
        failed_executions=12,
        cold_starts=21,
        warm_starts=199,
        cpu_seconds=51.0,
        execution_time=times(20, 100, 100, 0),
    )
    before = node_with(BUSY, cpu_seconds=1.0)
    history.add(before)
    history.add(
        attrs.evolve(
            before, artifacts=(attrs.evolve(BUSY, metrics=later),), total=later, cpu_seconds=2.0
        )
    )
    (row,) = history.rows()
    assert row.rates.per_s == 10
    assert row.rates.errors == 2
    assert row.rates.cold_share == pytest.approx(1 / 20)
    assert row.rates.cpu_share == 0.5
    assert row.rates.p50_s == pytest.approx(0.0005)
    assert history.node_cpu_share() == 0.5
    assert history.elapsed_s == 2.0


def test_old_metrics_and_those_of_an_earlier_run_are_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_clock(monkeypatch, 0.0, 4.0, 8.0, 12.0, 16.0, 17.0)
    history = History(span_s=10)
    first = node_with(BUSY)
    for _ in range(5):
        history.add(first)
    assert history.elapsed_s == 12.0  # from 4.0, the last that is 10 s old or older
    history.add(attrs.evolve(first, started_at=1e9 - 50))
    assert history.elapsed_s == 50


def test_the_busiest_come_first_and_what_does_not_fit_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.console import Console

    idle = [ArtifactMetrics(artifact=f"idle-{n}@1", metrics=executions()) for n in range(20)]
    long = attrs.evolve(BUSY, artifact="an-artifact-with-a-very-long-name-indeed@12")
    history = History(span_s=10)
    history.add(node_with(*idle, long))
    console = Console(width=80, height=20, record=True, file=io.StringIO())
    console.print(screen(history, width=80, height=20))
    lines = console.export_text().splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    assert lines[6].startswith("an-artifact")
    assert lines[6].endswith("…    2.0   3     4 10ms 91ms  10  10%    5 50%   64 M")
    assert "9 more artifacts" in lines[-1]


@pytest.mark.parametrize("how", ["q", "interrupt"])
def test_on_a_terminal_it_watches_until_told_to_stop(how: str, tmp_path: Path) -> None:
    """The real command in a terminal of its own, against a real node that serves its socket."""
    with _running_node(tmp_path):
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS="80", LINES="24")
            arguments = ["--state-dir", str(tmp_path / "state"), "top", "-i", "50ms"]
            os.execv(sys.executable, [sys.executable, "-m", "spear_core.cli", *arguments])
        shown = _read_until(terminal, rb"(?s)ARTIFACT.*ARTIFACT")
        os.write(terminal, b"q" if how == "q" else b"\x03")
        shown += _read_until(terminal, None)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == (0 if how == "q" else 130)
        assert b"q quits" in shown
        assert b"\x1b[?1049l" in shown, visible(shown.decode())  # the screen as it was before


@contextmanager
def _running_node(tmp_path: Path) -> Iterator[None]:
    log = tmp_path / "node.err"
    arguments = ["--state-dir", str(tmp_path / "state"), "node", "--plugins", "builtins"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "spear_core.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as node,
    ):
        try:
            assert node.stdout is not None
            assert node.stdout.readline().startswith(b"ready: "), log.read_text()
            yield
        finally:
            node.terminate()


def _read_until(descriptor: int, pattern: bytes | None) -> bytes:
    """What comes until the pattern was seen, or until the end."""
    seen = b""
    while pattern is None or not re.search(pattern, seen):
        ready, _, _ = select.select([descriptor], [], [], 60)
        assert ready, f"waited for {pattern!r}, saw {seen!r}"
        try:
            more = os.read(descriptor, 65536)
        except OSError:  # the terminal's other side is closed
            more = b""
        if not more:
            assert pattern is None, f"ended without {pattern!r}: {seen!r}"
            return seen
        seen += more
    return seen
