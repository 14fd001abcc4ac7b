"""The README says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import attrs

from spear_store_lmdb import LmdbMetadataConfig, LmdbObjectsConfig

TEXT = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_every_setting_is_there_with_its_default() -> None:
    settings = attrs.asdict(LmdbObjectsConfig()) | attrs.asdict(LmdbMetadataConfig())
    told = dict(re.findall(r"^\| `(\w+)` \| `(\S+)` \|", TEXT, re.MULTILINE))
    assert told == {
        name: f'"{value}"' if isinstance(value, str) else str(value)
        for name, value in settings.items()
    }


def test_the_first_result(tmp_path: Path) -> None:
    code = TEXT.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("b'hello' 1\n", "")


def test_it_is_listed(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("spear"), "plugins"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if "store-lmdb" in line]
    assert "object-store:lmdb" in line
