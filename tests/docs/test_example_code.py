"""What a document shows of an example is what the example has."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_array_that_two_agents_share() -> None:
    """Every block of code in that section stands so in one of the example's files."""
    text = (ROOT / "docs" / "objects.md").read_text(encoding="utf-8")
    section = text.partition("### Two agents and one array\n")[2].partition("\n### ")[0]
    blocks = re.findall(r"^```(?:python|toml)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    folder = ROOT / "examples" / "shared-array"
    files = [path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()]
    for block in blocks:
        assert [file for file in files if block in file], f"in no file of the example:\n{block}"
