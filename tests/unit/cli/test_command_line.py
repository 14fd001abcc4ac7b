"""The command line itself: its help, shared options, values, errors, plugin commands."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from spear_core.cli._errors import InterruptedBySignalError, explain
from spear_core.cli._exit_codes import EXIT_CODES
from spear_core.cli._group import COMMANDS
from spear_core.cli._options import DURATION, SIZE
from spear_core.cli._terminal import OutputClosedError
from spear_core.errors import ConfigError, SpearError, TaskNotFoundError

ROOT = Path(__file__).parents[3]
NAMES = [name for section in COMMANDS.values() for name in section]
HEAVY = ("attrs", "cattrs", "msgspec", "rich", "spear_core.api", "trio")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from spear_core.cli import run
assert run({arguments}) == 0
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = set(done.stderr.decode().split())
    assert "spear_core.cli" in loaded
    assert not loaded.intersection(HEAVY)


def test_help_shows_every_command(spear: Any) -> None:
    text = spear("--help").text
    for section, commands in COMMANDS.items():
        assert f"{section}:" in text
        for name, line in commands.items():
            assert re.search(rf"^  {name} +{re.escape(line)}$", text, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_without_a_command_there_is_help(spear: Any, arguments: list[str]) -> None:
    told = spear(*arguments)
    assert (told.code, told.err) == (0, "")
    assert told.out == spear(*arguments, "--help").out


@pytest.mark.parametrize("name", NAMES)
def test_a_command_has_help_that_begins_as_the_list_says(spear: Any, name: str) -> None:
    told = spear(name, "--help")
    assert (told.code, told.err) == (0, "")
    command = importlib.import_module(f"spear_core.cli.commands.{name}").command
    (line,) = (part[name] for part in COMMANDS.values() if name in part)
    assert (command.help or "").splitlines()[0] == line
    assert command.name == name


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for name in NAMES:
        assert f"`spear {name}" in text


def test_an_unknown_command_gives_the_nearest(spear: Any) -> None:
    told = spear("invok")
    assert told.code == 2
    assert told.err == (
        "error: there is no command 'invok'; did you mean 'invoke'?\ntry: spear --help\n"
    )


def test_a_wrong_option_is_two_lines(spear: Any) -> None:
    told = spear("ps", "--colour")
    assert told.code == 2
    assert len(told.err.splitlines()) == 2
    assert told.err.endswith("try: spear ps --help\n")


def test_the_version(spear: Any) -> None:
    assert spear("--version").text == "spear 0.1.0\n"


@pytest.mark.parametrize("place", ["before", "after", "both", "environment"])
def test_shared_options_go_before_or_after_the_command(
    spear: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, other = ("--state-dir", str(tmp_path / "w")), ("--state-dir", str(tmp_path / "o"))
    monkeypatch.setenv("SPEAR_STATE_DIR", str(tmp_path / ("w" if place == "environment" else "o")))
    lines = {
        "before": [*wanted, "logs", "--system"],
        "after": ["logs", "--system", *wanted],
        "both": [*other, "logs", "--system", *wanted],
        "environment": ["logs", "--system"],
    }
    assert str(tmp_path / "w") in spear(*lines[place]).err


def test_the_node_option_beats_the_environment(spear: Any, node: Any) -> None:
    assert spear("ps").code == 0
    assert spear("--node", "unix:///nowhere/s", "ps").code == 4
    assert spear("ps", "--node", "unix:///nowhere/s").code == 4


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5", 1.5), (".5s", 0.5), ("250ms", 0.25), ("2m", 120), ("1H", 3600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "abc", "10d", "1e9999", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("1000", 1000), ("1000B", 1000), ("64MiB", 64 << 20), ("64m", 64 << 20)),
        *(("64MB", 64_000_000), ("1.5 KiB", 1536), ("2G", 2 << 30)),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert SIZE.convert(text, None, None) == count


@pytest.mark.parametrize("text", ["", "0", "-5", "64MiBs", "1I", "1IB", "many"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SIZE.convert(text, None, None)


def every_error() -> list[type[SpearError]]:
    found = [SpearError]
    for cls in found:
        found += cls.__subclasses__()
    return found


def test_every_code_of_an_error_has_an_exit_code() -> None:
    assert {cls.code for cls in every_error()} <= EXIT_CODES.keys()


def test_the_exit_codes_are_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    documented = {
        code: int(number)
        for number, codes in re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", codes)
    }
    assert documented == dict(EXIT_CODES)


def told(
    error: BaseException, capsys: pytest.CaptureFixture[str], **options: bool
) -> tuple[int, str]:
    code = explain(error, debug=options.get("debug", False))
    return code, capsys.readouterr().err


def test_an_error_of_ours_is_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(TaskNotFoundError("no task"), capsys) == (3, "error: no task\n")


def test_all_problems_of_a_configuration_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("bad:\n  a: x", problems=("a: x", "b: y"))
    assert told(error, capsys) == (2, "error: bad:\n  a: x\n  b: y\n")


def test_a_check_names_the_secrets_without_a_value(spear: Any, tmp_path: Path) -> None:
    given, file = tmp_path / "given", tmp_path / "node.toml"
    given.write_text("correct horse battery")
    given.chmod(0o600)
    file.write_text(
        f"[secrets]\nhere = {{ file = '{given}' }}\ngone = {{ file = '{tmp_path}/gone' }}\n"
        "unset = { env = 'SPEAR_TEST_IS_NOT_SET' }\n"
    )
    answer = spear("config", "check", str(file))
    assert (answer.code, answer.out.decode()) == (0, f"{file}: no problems\n")
    gone, unset = answer.err.splitlines()
    assert "'gone' cannot be read" in gone
    assert "SPEAR_TEST_IS_NOT_SET" in unset


def test_groups_are_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    both = ExceptionGroup("", [TaskNotFoundError("a"), ExceptionGroup("", [ConfigError("b")])])
    assert told(both, capsys) == (7, "error: a\nerror: b\n")
    one = ExceptionGroup("", [TaskNotFoundError("a")])
    assert told(one, capsys) == (3, "error: a\n")


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        (KeyboardInterrupt(), 130),
        (OutputClosedError(), 141),
        (InterruptedBySignalError(15), 143),
    ],
)
def test_nothing_is_said_to_who_has_left(
    inner: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    group = BaseExceptionGroup("", [TaskNotFoundError("a"), inner])
    assert told(group, capsys) == (code, "")


def test_a_bug_is_a_line_and_with_debug_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = told(KeyError("x"), capsys)
    assert (code, len(text.splitlines())) == (7, 2)
    assert "internal error: KeyError: 'x'" in text
    assert "\nKeyError: 'x'\n" not in text
    assert told(KeyError("x"), capsys, debug=True)[1].startswith("KeyError: 'x'\n")


def test_debug_shows_where_an_error_of_ours_comes_from(spear: Any, node: Any) -> None:
    assert "Traceback" not in spear("result", "t-9").err
    assert "Traceback" in spear("result", "t-9", "--debug").err
    assert "Traceback" in spear("--debug", "result", "t-9").err


COMMANDS_PLUGIN = """
import click
from spear_core import hookimpl

@hookimpl
def spear_commands(cli):
    @cli.command()
    def greet():
        "Greet whoever calls."
        click.echo("hello from a plugin")
"""


@pytest.fixture
def fresh() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in a process of its own, which finds what is on ``site``."""

    def run(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "spear_core.cli", *args],
            env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(site)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_plugin_adds_a_command(fresh: Any, install_plugin: Any, tmp_path: Path) -> None:
    install_plugin("greeter", COMMANDS_PLUGIN)
    done = fresh(tmp_path / "site", "greet")
    assert (done.returncode, done.stdout) == (0, "hello from a plugin\n")
    assert "greeter" not in done.stderr
    shown = fresh(tmp_path / "site", "--help").stdout
    assert "From plugins:\n  greet       Greet whoever calls.\n" in shown


def test_a_plugin_without_commands_is_not_imported_for_help(
    fresh: Any, install_plugin: Any, tmp_path: Path
) -> None:
    install_plugin("bystander", "# no spear commands here\n")
    (tmp_path / "site" / "bystander.py").write_text("print('imported')\n")
    assert "imported" not in fresh(tmp_path / "site", "--help").stdout
    assert "imported" in fresh(tmp_path / "site", "plugins").stdout


def test_a_broken_plugin_command_is_reported_and_help_is_shown(
    fresh: Any, install_plugin: Any, tmp_path: Path
) -> None:
    install_plugin("broken", COMMANDS_PLUGIN.replace("import click", "import nothing_like_it"))
    done = fresh(tmp_path / "site", "--help")
    assert done.returncode == 0
    assert "Run code once" in done.stdout
    assert "warning:" in done.stderr
    assert "nothing_like_it" in done.stderr
    assert "broken" in done.stderr


def test_a_plugin_cannot_replace_a_command(fresh: Any, install_plugin: Any, tmp_path: Path) -> None:
    install_plugin("thief", COMMANDS_PLUGIN.replace("def greet", "def ps"))
    done = fresh(tmp_path / "site", "--help")
    assert "a plugin adds the command 'ps', which the core has" in done.stderr
    assert "Greet whoever calls" not in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(spear: Any, shell: str) -> None:
    assert "_SPEAR_COMPLETE" in spear("completion", shell).text


def test_completion_of_commands(fresh: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("spear")],
        env={
            "PATH": "/usr/bin:/bin",
            "_SPEAR_COMPLETE": "bash_complete",
            "COMP_WORDS": "spear in",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["plain,invoke", "plain,instances"]
