"""The TOML in ``docs/artifacts.md`` is right, and the whole of it is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import attrs

from spear_core._spec_file import _Spec, load_spec
from spear_core.config import load_config
from spear_core.plugins import load_plugins

TEXT = (Path(__file__).parents[2] / "docs" / "artifacts.md").read_text("utf-8")
SPEC, SECRETS = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_spec_file_can_be_deployed(tmp_path: Path) -> None:
    for path in ("agent.py", "prompts/hello.txt", "tests/test_agent.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "requirements.txt").write_text("six==1.16.0\n")
    (tmp_path / "spear.toml").write_text(SPEC)
    upload = load_spec(tmp_path / "spear.toml")
    assert (upload.name, upload.filename, upload.bundle) == ("answers", "agent.py", True)
    assert upload.requirements == ("httpx>=0.27", "six==1.16.0")


def test_it_has_every_key() -> None:
    written = tomllib.loads(SPEC)
    fields = attrs.fields_dict(_Spec)
    assert set(written) == set(fields)
    for table in ("limits", "resources", "retry"):
        assert set(written[table]) == set(attrs.fields_dict(type(fields[table].default)))


def test_the_secrets_are_as_a_node_wants_them(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(SECRETS)
    settings = load_config(path, load_plugins([]))
    assert set(settings.spearlet.secrets) == {"openai", "database"}
