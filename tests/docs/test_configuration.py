"""``docs/configuration.md`` has every setting of the core, with its default."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from spear_core.api import SpearletConfig
from spear_core.builtins.memory_metadata import MemoryMetadataConfig
from spear_core.builtins.memory_store import MemoryStoreConfig
from spear_core.config import load_config
from spear_core.plugins import load_plugins

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "configuration.md").read_text("utf-8")


def documented() -> dict[str, dict[str, str]]:
    """Section → setting → default, as the tables say."""
    sections = re.split(r"^## `\[(.+)\]`$", TEXT, flags=re.MULTILINE)
    found = {}
    for name, body in zip(sections[1::2], sections[2::2], strict=True):
        body = re.split(r"^## ", body, flags=re.MULTILINE)[0]
        found[name] = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", body, re.MULTILINE))
    return {name: table for name, table in found.items() if table}


def toml(value: object) -> str:
    """A value as the file would have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_every_setting_is_documented_with_its_default() -> None:
    settings = attrs.asdict(SpearletConfig())
    builtins = (MemoryStoreConfig(), MemoryMetadataConfig())
    settings["plugins.builtins"] = {
        k: v for part in builtins for k, v in attrs.asdict(part).items()
    }
    expected = {
        name: {setting: toml(value) for setting, value in section.items()}
        for name, section in settings.items()
        if section  # [secrets] has the operator's own names
    }
    assert documented() == expected


def test_the_readme_says_the_same() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    named = re.findall(r"^\| `\[(\w+)\] (\w+)` \| (\S+) \|", readme, re.MULTILINE)
    assert len(named) >= 8
    for section, setting, default in named:
        assert documented()[section][setting] == default


def test_the_example_is_right(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    path = tmp_path / "node.toml"
    path.write_text(example)
    settings = load_config(path, load_plugins())
    assert settings.spearlet.execution.max_concurrent_tasks == 64
    assert settings.spearlet.pool.max_instances == 4
