"""``spear deploy``: what becomes of the command line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from spear_core.api import ArtifactState, IsolationLevel, Limits
from spear_core.cli._upload import name_for


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "hello world.sh"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_it_prints_the_artifact_and_its_version(spear: Any, node: Any, script: Path) -> None:
    told = spear("deploy", str(script), "--name", "hello")
    assert told.text == "hello@1\n"
    assert told.err == "hello world.sh: process, command, 10 B, sha256 abababababab\n"
    assert json.loads(spear("deploy", str(script), "--json").out)["version"] == 2


def test_everything_asked_for_is_in_the_upload(
    spear: Any, node: Any, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "from here")
    options = (
        ("-e", "A=1", "--env", "B=x=y", "-e", "MINE", "--arg", "--short", "-a", "2"),
        ("--memory", "64MiB", "--cpu", "1.5", "--processes", "4", "--open-files", "32"),
        ("--max-output", "1K", "--isolation", "syscalls", "--runtime", "process"),
        ("--timeout", "90s", "--reuse"),
    )
    told = spear("deploy", f"{script}:entry", "--name", "n", *itertools.chain(*options))
    assert told.code == 0, told.err
    (upload,) = node.uploads
    assert upload.content == b"#!/bin/sh\n"
    assert (upload.name, upload.filename, upload.entry) == ("n", "hello world.sh", "entry")
    assert upload.env == {"A": "1", "B": "x=y", "MINE": "from here"}
    assert upload.args == ("--short", "2")
    assert upload.limits == Limits(
        memory_bytes=64 << 20, cpu_seconds=1.5, open_files=32, processes=4, output_bytes=1024
    )
    assert upload.required_isolation is IsolationLevel.SYSCALLS
    assert (upload.runtime, upload.timeout_s, upload.reuse) == ("process", 90.0, True)
    assert upload.executable


def test_what_is_left_out_is_left_to_the_node(spear: Any, node: Any, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    spear("deploy", str(tmp_path / "a.py"))
    (upload,) = node.uploads
    assert (upload.name, upload.entry, upload.runtime) == ("a", "", "")
    assert (upload.required_isolation, upload.timeout_s, upload.reuse) == (None, None, None)
    assert upload.limits == Limits()
    assert not upload.executable


def test_a_colon_in_a_file_name(spear: Any, node: Any, tmp_path: Path) -> None:
    (tmp_path / "a:b").write_text("")
    spear("deploy", str(tmp_path / "a:b"))
    spear("deploy", str(tmp_path / "a:b:entry"))
    assert [(u.filename, u.entry) for u in node.uploads] == [("a:b", ""), ("a:b", "entry")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.py"], "nothing.py: no such file"),
        (["/"], "there is no spear.toml in /; name the file to run"),
        (["/dev/null"], "/dev/null is no regular file"),
        (["SCRIPT", "--env", "NOT_SET_HERE"], "write NOT_SET_HERE=VALUE"),
        (["SCRIPT", "--env", "=1"], "write K=V"),
        (["SCRIPT", "--isolation", "total"], "'total' is not one of"),
    ],
)
def test_mistakes(spear: Any, node: Any, script: Path, arguments: list[str], said: str) -> None:
    told = spear("deploy", *(str(script) if a == "SCRIPT" else a for a in arguments))
    assert told.code == 2
    assert said in told.err
    assert node.uploads == []


def test_a_file_that_may_not_be_read(spear: Any, node: Any) -> None:
    told = spear("deploy", "/proc/self/mem:x")
    assert (told.code, told.err.splitlines()[0]) == (
        2,
        "error: /proc/self/mem cannot be read: Input/output error",
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [("hello.py", "hello"), ("my agent!.py", "my-agent-"), ("-x.sh", "x"), ("é.py", "code")],
)
def test_names_made_from_files(file: str, name: str) -> None:
    assert name_for(Path(file)) == name


def test_progress_is_shown_on_a_terminal_when_it_takes_long(
    spear: Any, node: Any, script: Path, terminal: Any
) -> None:
    node.deploying_s = 0.6
    shown = terminal(lambda: spear("deploy", str(script)), "stderr")
    assert "deploying hello-world (10 B)" in shown
    assert "deploying" not in spear("deploy", str(script)).err
    node.deploying_s = 0.0
    assert "deploying" not in terminal(lambda: spear("deploy", str(script)), "stderr")


# --- spear.toml ---------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "main.py").write_text("import part\n")
    (root / "part.py").write_text("")
    (root / "spear.toml").write_text(
        """
        name = "answers"
        file = "main.py"
        entry = "main"
        timeout = "2m"
        args = ["-x"]
        env = { A = "file", B = "file" }
        secrets = { KEY = "openai" }
        requirements = ["six"]
        limits = { memory = "64MiB", processes = 3 }
        objects = { read = ["camera/"] }
        """
    )
    return root


@pytest.mark.parametrize("which", ["", "spear.toml", "main"])
def test_a_directory_is_deployed_as_its_spear_toml_says(
    spear: Any, node: Any, project: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if which == "":
        monkeypatch.chdir(project)
        told = spear("deploy")
    elif which == "main":
        told = spear("deploy", f"{project}:other")
    else:
        told = spear("deploy", str(project / which))
    assert told.text == "answers@1\n"
    (upload,) = node.uploads
    assert (upload.filename, upload.bundle) == ("main.py", True)
    assert upload.entry == ("other" if which == "main" else "main")
    assert (upload.timeout_s, upload.args) == (120.0, ("-x",))
    assert (upload.secrets, upload.requirements) == ({"KEY": "openai"}, ("six",))
    assert upload.objects.read == ("camera/",)
    assert "objects.read         camera/" in spear("artifacts", "describe", "answers").text


def test_options_win_over_the_file(spear: Any, node: Any, project: Path) -> None:
    options = (
        *("--name", "n", "--timeout", "5", "--env", "A=option", "--secret", "MORE=key"),
        *("--arg", "-y", "--memory", "1GiB", "-r", "humanize>=4", "--fresh"),
    )
    told = spear("deploy", str(project), *options)
    assert told.code == 0, told.err
    (upload,) = node.uploads
    assert (upload.name, upload.timeout_s, upload.args, upload.reuse) == ("n", 5.0, ("-y",), False)
    assert upload.env == {"A": "option", "B": "file"}
    assert upload.secrets == {"KEY": "openai", "MORE": "key"}
    assert upload.limits == Limits(memory_bytes=1 << 30, processes=3)
    assert upload.requirements == ("six", "humanize>=4")


def test_every_mistake_of_the_file_is_shown(spear: Any, node: Any, project: Path) -> None:
    (project / "spear.toml").write_text('fil = "main.py"\ntimeout = "soon"\n')
    told = spear("deploy", str(project))
    assert told.code == 2
    for line in (
        *("fil: unknown key; did you mean 'file'?", "timeout: 'soon' is no duration"),
        "file: required, and not set",
    ):
        assert line in told.err
    assert node.uploads == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--secret", "KEY"], "--secret KEY: write VARIABLE=NAME"),
        (["--secret", "=x"], "write VARIABLE=NAME"),
        (["--requirement", "-e ."], "options for the installer have no place here"),
    ],
)
def test_mistakes_in_options(
    spear: Any, node: Any, script: Path, options: list[str], said: str
) -> None:
    told = spear("deploy", str(script), *options)
    assert told.code == 2
    assert said in told.err


def test_a_version_that_is_disabled_draws_a_warning(spear: Any, node: Any, script: Path) -> None:
    node.states["hello", 1] = ArtifactState.DISABLED
    told = spear("deploy", str(script), "--name", "hello")
    assert told.text == "hello@1\n"
    assert "spear artifacts enable hello@1" in told.err


def test_a_terminal_shows_what_the_node_does(
    spear: Any, node: Any, script: Path, terminal: Any
) -> None:
    node.deploying_s = 1.5
    node.preparing = "installing 3 requirements"
    shown = terminal(lambda: spear("deploy", str(script), "--name", "n"), "stderr")
    assert "deploying n (10 B): installing 3 requirements" in shown
