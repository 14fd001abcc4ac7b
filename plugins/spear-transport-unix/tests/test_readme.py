"""The README's table is the configuration as it is."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from spear_transport_unix import TcpConfig, UnixConfig

README = Path(__file__).parent.parent / "README.md"


def test_the_configuration_table_is_complete_and_true() -> None:
    table = README.read_text().partition("## Configuration")[2].partition("##")[0]
    rows = re.findall(r"^\| `(\w+)` \| `\"?([^`\"]+)\"?` \|", table, re.MULTILINE)
    fields = {
        field.name: str(field.default)
        for config in (UnixConfig, TcpConfig)
        for field in attrs.fields(config)
    }
    assert dict(rows) == fields
