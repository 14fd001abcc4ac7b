"""What ``spear new`` makes works as its README says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent


def session(readme: str) -> list[tuple[str, str]]:
    """The commands of a README's console blocks, each with what it prints on stdout."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = step.partition("\n")
            found.append((command, printed))
    return found


@pytest.fixture
def zig_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where zig keeps the C library it has built; the user's own, so that it is built once."""
    return Path(os.environ.get("ZIG_GLOBAL_CACHE_DIR") or Path.home() / ".cache" / "zig")


@pytest.mark.parametrize("template", ["function", "agent", "command", "wasm-c", "wasm-zig", "wat"])
def test_a_project_runs_as_its_readme_says(template: str, home: Any, zig_cache: Path) -> None:
    made = home.spear("new", template, "my-thing")
    assert made.status == 0, made.err
    project = home.folder / "my-thing"
    assert made.out.splitlines() == sorted(f"my-thing/{path.name}" for path in project.iterdir())
    assert "@NAME@" not in "".join(path.read_text() for path in project.iterdir())
    home.node()
    environ = dict(home.environ(), ZIG_GLOBAL_CACHE_DIR=str(zig_cache))
    environ["PATH"] = f"{BIN}:{environ['PATH']}"
    steps = session((project / "README.md").read_text())
    assert len(steps) >= 3
    for command, printed in steps:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=project,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stderr}"
        if "ziglang" not in command:
            assert done.stdout.rstrip("\n") == printed.rstrip("\n"), f"$ {command}\n{done.stderr}"


@pytest.mark.parametrize("template", ["function", "agent", "command", "wasm-c", "wasm-zig", "wat"])
def test_what_comes_next_is_what_the_readme_says(template: str, home: Any) -> None:
    told = home.spear("new", template, "x")
    steps = [command for command, _ in session((home.folder / "x" / "README.md").read_text())]
    lines = [line.strip() for line in told.err.splitlines()]
    assert lines[:2] == ["next:", "cd x"]
    assert [line.replace('"', "") for line in lines[2:]] == [
        step.replace('"', "") for step in steps[: len(lines) - 2]
    ]


def test_what_an_agents_settings_say_is_in_force(home: Any) -> None:
    """All of its spear.toml: a node takes it, and shows it."""
    assert home.spear("new", "agent", "x").status == 0
    home.node()
    told = home.spear("deploy", "x")
    assert told.out.splitlines()[0] == "x@1", told.err
    shown = json.loads(home.spear("artifacts", "describe", "x", "--json").out)
    settings = shown["settings"]
    assert settings["resources"] == {"cpu": 0.1, "memory_bytes": 64 << 20}
    assert settings["limits"]["memory_bytes"] == 256 << 20
    pool = {key: value for key, value in settings["pool"].items() if value is not None}
    assert pool == {"min_instances": 1, "max_instances": 2, "idle_timeout_ms": 60_000}
    assert settings["objects"]["write"] == ["visitors/"]
    assert settings["timeout_s"] == 30


def test_nothing_is_overwritten(home: Any) -> None:
    (home.folder / "mine").mkdir()
    (home.folder / "mine" / "main.py").write_text("precious")
    told = home.spear("new", "function", "mine")
    assert told.status == 2
    assert "mine exists already and is not empty" in told.err
    assert (home.folder / "mine" / "main.py").read_text() == "precious"


def test_a_name_that_no_artifact_could_have(home: Any) -> None:
    told = home.spear("new", "wat", "my thing")
    assert told.status == 2
    assert "no name for an artifact" in told.err
    assert list(home.folder.iterdir()) == []


def test_templates_are_listed(home: Any) -> None:
    names = [line.split()[0] for line in home.spear("new", "--list").out.splitlines()]
    assert names == ["function", "agent", "command", "wasm-c", "wasm-zig", "wat"]
    assert "'wasm-c'" in home.spear("new", "rust", "x").err
