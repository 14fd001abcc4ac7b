"""``spear artifacts``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spear_core.api import ArtifactState


@pytest.fixture
def versions(spear: Any, node: Any, tmp_path: Path) -> Any:
    """Three versions of ``f``, the last of them the latest."""
    path = tmp_path / "f.sh"
    path.write_text("#!/bin/sh\n")
    for number in range(3):
        options = ("--env", f"N={number}", "--secret", "KEY=openai", "--memory", "64MiB")
        assert spear("deploy", str(path), *options).text == f"f@{number + 1}\n"
    return node


def test_the_latest_and_the_states_are_shown(spear: Any, versions: Any) -> None:
    versions.latest["f"] = 2
    versions.states["f", 3] = ArtifactState.DISABLED
    for command in (("artifacts",), ("artifacts", "list")):
        rows = [line.split()[1:4] for line in spear(*command).text.splitlines()[1:]]
        assert rows == [
            ["3", "disabled", "process"],
            ["2", "*", "ready"],
            ["1", "ready", "process"],
        ]


def test_describe_shows_what_was_said(spear: Any, versions: Any) -> None:
    lines = spear("artifacts", "describe", "f").text.splitlines()
    told = dict(line.split(maxsplit=1) for line in lines if " " in line)
    assert told["version"] == "3 (latest)"
    assert told["env.N"] == "2"
    assert told["secrets.KEY"] == "openai"
    assert told["limits.memory_bytes"] == str(64 << 20)
    assert "weight" not in told  # left at its default
    assert spear("artifacts", "describe", "f@1").text.splitlines()[1].split()[1] == "1"
    shown = json.loads(spear("artifacts", "describe", "f@2", "--json").out)
    assert shown["info"]["version"] == 2
    assert shown["settings"]["env"] == {"N": "1"}


def test_rollback_and_promote(spear: Any, versions: Any) -> None:
    assert spear("artifacts", "rollback", "f").text == "f@2\n"
    assert spear("artifacts", "rollback", "f").text == "f@1\n"
    told = spear("artifacts", "rollback", "f")
    assert told.code != 0
    assert "f@1 is the latest, and there is no version before it" in told.err
    assert spear("artifacts", "promote", "f@3").text == "f@3\n"
    versions.states["f", 2] = ArtifactState.DISABLED
    assert spear("artifacts", "rollback", "f").text == "f@1\n"


def test_disable_and_enable(spear: Any, versions: Any) -> None:
    assert spear("artifacts", "disable", "f@2").text == "f@2 is disabled\n"
    assert versions.states == {("f", 2): ArtifactState.DISABLED}
    assert spear("artifacts", "enable", "f@2").text == "f@2 is ready\n"
    assert versions.states == {("f", 2): ArtifactState.READY}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["promote", "f"], "say which version: f@1"),
        (["disable", "f"], "say which version"),
        (["promote", "f@x"], "'x' is no version"),
        (["describe", "f@"], "is no version"),
    ],
)
def test_mistakes(spear: Any, node: Any, arguments: list[str], said: str) -> None:
    told = spear("artifacts", *arguments)
    assert told.code == 2
    assert said in told.err


def test_what_is_not_there(spear: Any, node: Any) -> None:
    told = spear("artifacts", "describe", "nothing")
    assert told.code != 0
    assert "nothing" in told.err
