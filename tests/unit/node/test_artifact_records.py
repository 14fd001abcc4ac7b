"""What is on disk about a name, today and as earlier nodes wrote it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from spear_core.api import ArtifactSettings, ArtifactUpload, IsolationLevel, Limits
from spear_core.errors import ArtifactCorruptError
from spear_core.node._artifact_records import NameRecord, decode_name, encode_name
from spear_core.node._artifacts import ArtifactStore

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # sha256 of b"test"
FIRST_FORMAT = f"""{{
  "next_version": 3,
  "versions": [
    {{
      "version": 2,
      "digest": "{DIGEST}",
      "size": 4,
      "created_at": 1750000000.25,
      "runtime": "process",
      "shape": "command",
      "filename": "old.sh",
      "entry": "go",
      "env": {{
        "A": "1"
      }},
      "args": ["-x"],
      "limits": {{
        "memory_bytes": 1048576,
        "cpu_seconds": 1.5,
        "open_files": null,
        "processes": null,
        "output_bytes": null
      }},
      "required_isolation": 2,
      "reuse": false,
      "timeout_s": 3.0
    }}
  ]
}}
"""
"""As a node of the first format wrote it, byte for byte."""


async def test_a_file_of_the_first_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "old.json").write_text(FIRST_FORMAT)
    (tmp_path / "code" / DIGEST).mkdir(parents=True)
    (tmp_path / "code" / DIGEST / "old.sh").write_bytes(b"test")
    store = ArtifactStore(tmp_path, warn=pytest.fail)
    artifact, entry = store.resolve("old")
    assert (artifact.ref, entry, artifact.args, artifact.env) == (
        "old@2",
        "go",
        ("-x",),
        {"A": "1"},
    )
    assert artifact.limits == Limits(memory_bytes=1 << 20, cpu_seconds=1.5)
    assert artifact.required_isolation is IsolationLevel.SYSCALLS
    assert artifact.timeout_s == 3.0
    assert artifact.retry == ArtifactSettings().retry
    await store.verify(artifact)

    upload = ArtifactUpload(name="old", filename="old.sh", content=b"new")
    staged = await store.stage(upload)
    candidate, _ = store.candidate(upload, staged, runtime="process", shape="command", reuse=False)
    await store.commit("old", candidate)
    store.code.unstage(staged)
    again = ArtifactStore(tmp_path, warn=pytest.fail)
    assert again.resolve("old")[0].version == 3
    assert again.resolve("old@2")[0] == artifact


def test_a_file_of_a_later_format_is_left_alone(tmp_path: Path) -> None:
    later = msgspec.json.decode(encode_name(NameRecord()))
    later["format"] += 1
    content = msgspec.json.encode(later)
    with pytest.raises(ArtifactCorruptError, match="newer version of SPEAR"):
        decode_name(content)
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "f.json").write_bytes(content)
    warnings: list[str] = []
    store = ArtifactStore(tmp_path, warn=warnings.append)
    with pytest.raises(ArtifactCorruptError, match="newer version"):
        store.resolve("f")
    assert len(warnings) == 1
