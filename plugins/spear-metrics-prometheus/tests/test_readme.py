"""The README's tables are as things are."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from spear_core.api import ExecutionMetrics, Histogram, NodeMetrics
from spear_metrics_prometheus import PrometheusConfig
from spear_metrics_prometheus._exposition import render

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def test_the_configuration_table_is_complete_and_true() -> None:
    table = README.partition("## Configuration")[2].partition("##")[0]
    rows = re.findall(r"^\| `(\w+)` \| `\"([^`\"]*)\"` \|", table, re.MULTILINE)
    fields = {field.name: field.default for field in attrs.fields(PrometheusConfig)}
    assert dict(rows) == fields


def test_every_metric_is_named_and_no_other() -> None:
    none = Histogram(bounds_s=(), counts=(0,))
    total = ExecutionMetrics(execution_time=none, queue_time=none)
    page = render(NodeMetrics(node_id="n", total=total))
    told = set(re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE))
    section = README.partition("## Metrics")[2].partition("A rule that")[0]
    named = set(re.findall(r"`((?:spear|process)_\w+)`", section))
    assert named == told
