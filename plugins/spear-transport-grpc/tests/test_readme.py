"""The README's table is the configuration as it is, and so are the other words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs

from spear_transport_grpc._bridge._core import SUPPORTED
from spear_transport_grpc._config import ChannelConfig, DoorConfig

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text("utf-8")


def as_toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def test_the_configuration_table_is_complete_and_true() -> None:
    table = README.partition("## Configuration")[2].partition("##")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE)
    fields = {
        field.name: as_toml(field.default)
        for config in (DoorConfig, ChannelConfig)
        for field in attrs.fields(config)
    }
    assert dict(rows) == fields


def test_the_supported_versions_are_those_of_the_distribution() -> None:
    assert f"`{SUPPORTED}`" in README
    assert f'"{SUPPORTED}"' in (HERE / "pyproject.toml").read_text("utf-8")
