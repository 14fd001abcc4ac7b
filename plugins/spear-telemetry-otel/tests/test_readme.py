"""The README's table is the configuration as it is."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from spear_telemetry_otel import OtelConfig

README = Path(__file__).parent.parent / "README.md"


def test_the_configuration_table_is_complete_and_true() -> None:
    table = README.read_text("utf-8").partition("## Configuration")[2].partition("##")[0]
    rows = re.findall(r"^\| `(\w+)` \| `\"?([^`\"]*)\"?` \|", table, re.MULTILINE)
    fields = {
        field.name: "{}" if field.name == "headers" else str(field.default)
        for field in attrs.fields(OtelConfig)
    }
    assert dict(rows) == fields
