"""``spear run`` with real files, real processes and real pipes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

SPEAR = str(Path(sys.executable).with_name("spear"))
UPPER = "#!/bin/sh\necho working >&2\ntr a-z A-Z\n"


def script(home: Any, text: str, name: str = "x.sh") -> str:
    path = home.folder / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def popen(home: Any, *args: str, **streams: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([SPEAR, *args], cwd=home.folder, env=home.environ(), **streams)
    home.processes.append(process)
    return process


def test_the_output_on_stdout_and_the_rest_on_stderr(home: Any) -> None:
    told = home.spear("run", script(home, UPPER), stdin=b"from a pipe")
    assert (told.status, told.out, told.err) == (0, "FROM A PIPE", "working\n")
    told = home.spear("run", script(home, UPPER), "--input", "given", stdin=b"not read")
    assert told.out == "GIVEN"


def test_every_byte_comes_through(home: Any) -> None:
    data = bytes(range(256)) * 5000
    (home.folder / "data").write_bytes(data)
    path = script(home, "#!/bin/sh\ncat\n")
    process = popen(home, "run", path, "--input-file", "data", stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0] == data


def test_the_log_comes_while_it_runs(home: Any) -> None:
    path = script(home, "#!/bin/sh\necho first >&2\nread line\necho second >&2\nsleep 30\n")
    process = popen(home, "run", path, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == b"first\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.wait(60)


def test_a_failed_command_tells_its_exit_code(home: Any) -> None:
    told = home.spear("run", script(home, "#!/bin/sh\necho why >&2\nexit 3\n"))
    assert (told.status, told.out) == (1, "")
    assert told.err == "why\nerror: x@1 ended with exit code 3: why\n"


def test_options_reach_the_code(home: Any) -> None:
    path = script(home, '#!/bin/sh\nprintf "%s/%s/%s" "$A" "$MINE" "$1"\n')
    told = home.spear("run", path, "-e", "A=1", "--arg", "two words", "--env", "HOME")
    assert told.out == "1//two words"


def test_a_deadline_stops_it(home: Any) -> None:
    told = home.spear("run", script(home, "#!/bin/sh\nsleep 600\n"), "--timeout", "300ms")
    assert told.status == 124
    assert "ran out of time" in told.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_stops_the_guest(home: Any, number: int) -> None:
    path = script(home, "#!/bin/sh\necho up >&2\nsleep 300 & sleep 300\n")
    process = popen(home, "run", path, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == b"up\n"
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert b"interrupted; x.sh was stopped" in process.stderr.read()
    home.wait_until(lambda: home.gone(below), "the guest's processes are gone")


def test_a_signal_that_is_ignored_stays_ignored(home: Any) -> None:
    path = script(home, "#!/bin/sh\necho up >&2\nsleep 1\necho done\n")
    process = popen(
        home,
        "run",
        path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[0] == b"done\n"
    assert process.returncode == 0


def test_nothing_is_left_behind(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = home.folder / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    assert home.spear("run", script(home, UPPER)).status == 0
    assert list(temporary.iterdir()) == []
    assert [path.name for path in home.state.iterdir()] == ["cache"]


def test_without_a_stdin_the_input_is_empty(home: Any) -> None:
    path = script(home, "#!/bin/sh\nwc -c\n")
    closed = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", SPEAR, "run", path],
        env=home.environ(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (closed.returncode, closed.stdout.strip()) == (0, b"0"), closed.stderr
    assert home.spear("run", path).out.strip() == "0"


def test_input_from_a_process_substitution(home: Any) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{SPEAR} run {script(home, UPPER)} --input-file <(echo hi)"],
        env=home.environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"HI\n")
    missing = home.spear("run", "x.sh", "--input-file", "nothing")
    assert (missing.status, missing.err.splitlines()[0]) == (
        2,
        "error: --input-file nothing: no such file",
    )


def test_a_terminal_is_not_waited_for(home: Any) -> None:
    ours, theirs = pty.openpty()
    process = popen(
        home, "run", script(home, "#!/bin/sh\nwc -c\n"), stdin=theirs, stdout=subprocess.PIPE
    )
    shown, _ = process.communicate(timeout=60)
    assert (process.returncode, shown.strip()) == (0, b"0")
    os.close(ours)
    os.close(theirs)


def test_a_silent_stdin_is_explained(home: Any) -> None:
    process = popen(
        home,
        "run",
        script(home, UPPER),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert (
        process.stderr.readline()
        == b"reading the input from stdin (if there is none: --input '')\n"
    )
    shown, _ = process.communicate(b"after all", timeout=60)
    assert shown == b"AFTER ALL"


def test_an_interrupt_while_reading_stdin(home: Any) -> None:
    process = popen(home, "run", script(home, UPPER), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_input_beyond_the_limit(home: Any) -> None:
    (home.folder / "c.toml").write_text("[execution]\nmax_input_bytes = 10\n")
    path = script(home, UPPER)
    told = home.spear("run", path, "--config", "c.toml", stdin=b"x" * 11)
    assert told.status == 2
    assert "the input (stdin) is longer than 10 bytes" in told.err
    (home.folder / "in.txt").write_text("x" * 11)
    file = home.spear("run", path, "--config", "c.toml", "--input-file", "in.txt")
    assert "the input (in.txt) is longer than 10 bytes" in file.err
    assert home.spear("run", path, "--config", "c.toml", stdin=b"x" * 10).out == "X" * 10
    endless = subprocess.run(
        ["bash", "-c", f"yes | {SPEAR} run {path} --config c.toml"],
        cwd=home.folder,
        env=home.environ(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert endless.returncode == 2


def test_a_configuration_that_keeps_no_results(home: Any) -> None:
    (home.folder / "c.toml").write_text("[tasks]\nkeep_finished = 0\nkeep_finished_bytes = 0\n")
    told = home.spear("run", script(home, UPPER), "--config", "c.toml", "-i", "x")
    assert (told.status, told.out) == (0, "X")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves(home: Any, unbuffered: str) -> None:
    path = script(home, "#!/bin/sh\nhead -c 1000000 /dev/zero\n")
    done = subprocess.run(
        ["bash", "-c", f"{SPEAR} run {path} | head -c 1 | wc -c; echo ${{PIPESTATUS[0]}}"],
        env=dict(home.environ(), PYTHONUNBUFFERED=unbuffered),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == [b"1", b"141"]
    assert done.stderr == b""


def test_a_full_disk_for_the_output(home: Any) -> None:
    with open("/dev/full", "wb") as full:
        process = popen(
            home,
            "run",
            script(home, UPPER),
            "--input",
            "x",
            stdout=full,
            stderr=subprocess.PIPE,
        )
        _, said = process.communicate(timeout=60)
    assert process.returncode == 7
    assert said.endswith(b"error: standard output cannot be written: No space left on device\n")


def test_a_state_directory_that_cannot_be_written(home: Any) -> None:
    told = home.spear("run", script(home, UPPER), "-i", "x", "--state-dir", "/proc/nothing")
    assert (told.status, told.out) == (0, "X")


def test_a_file_that_no_runtime_knows(home: Any) -> None:
    path = script(home, "import spear_sdk\n", "agent.py")
    told = home.spear("run", path, "--plugins", "runtime-wasm", "-i", "")
    assert told.status == 2
    assert "'runtime-process' is skipped: not among the plugins asked for" in told.err
    assert len(told.err.splitlines()) == 1
    told = home.spear("run", script(home, "int main;", "x.c"), "-i", "")
    assert told.status == 2
    assert "no installed runtime runs file 'x.c'" in told.err
    assert "pip install" not in told.err
    assert "spear run --help" in told.err
    told = home.spear("run", script(home, "", "nothing"), "-i", "")
    assert "'nothing', which is empty" in told.err
    told = home.spear("run", path, "--runtime", "bogus", "-i", "")
    assert "there is no runtime 'bogus' (runtimes: process, wasm)" in told.err


def test_an_agent_whose_import_stands_below_a_long_comment(home: Any) -> None:
    code = "from spear_sdk import function\n\n\n@function\ndef f(x: str) -> str:\n    return x\n"
    told = home.spear("run", script(home, "# licence\n" * 1000 + code, "a.py"), "-i", "hello")
    assert (told.status, told.out) == (0, "hello")


def test_a_file_name_that_is_no_unicode(home: Any) -> None:
    path = os.fsencode(home.folder) + b"/\xff.sh"
    Path(os.fsdecode(path)).write_text(UPPER)
    told = home.spear("run", os.fsdecode(path), "--input", "x")
    assert (told.status, told.out) == (0, "X")
    told = home.spear("run", os.fsdecode(path), "--input", "x", "--arg", os.fsdecode(b"\xff"))
    assert told.status == 2
    assert "--arg: not UTF-8" in told.err


def test_without_a_stdout(home: Any) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- >&-', "sh", SPEAR, "run", script(home, UPPER), "-i", "x"],
        env=home.environ(),
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7
    assert done.stderr == b"working\nerror: standard output is closed\n"


def test_nobody_else_can_write_what_it_runs(home: Any) -> None:
    state = home.folder / "new" / "state"
    told = subprocess.run(
        ["sh", "-c", 'umask 0; exec "$@"', "sh", SPEAR, "run", script(home, UPPER), "-i", "x"],
        env=dict(home.environ(), SPEAR_STATE_DIR=str(state)),
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert told.stdout == b"X"
    assert state.stat().st_mode & 0o777 == 0o700


def test_plugins_that_are_not_installed(home: Any) -> None:
    told = home.spear("run", script(home, UPPER), "--plugins", "runtime-wsam", "-i", "")
    assert told.status == 2
    assert "runtime-wasm" in told.err
    assert home.spear("run", "x.sh", "--plugins", ",").status == 2


def test_a_file_name_that_the_locale_cannot_hold(home: Any) -> None:
    path = home.folder / "h\u00e9llo.sh"
    path.write_text(UPPER)
    locale = ("env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0")
    told = home.spear("run", str(path), "-i", "", wrapper=locale)
    assert told.status == 2
    assert "the locale of the node is ascii" in told.err
    assert "PYTHONUTF8=1" in told.err


def test_more_isolation_than_there_is(home: Any) -> None:
    wat = home.folder / "x.wat"
    wat.write_text('(module (memory (export "memory") 1) (func (export "_start")))')
    told = home.spear("run", str(wat), "--isolation", "cgroup")
    assert told.status == 6
    assert "CGROUP" in told.err.upper()


def test_doctor_reports_every_runtime(home: Any) -> None:
    told = home.spear("doctor")
    assert "runtime process" in told.out
    assert "runtime wasm" in told.out
    assert f"{home.state}" in told.out


def test_doctor_finds_a_configuration_that_is_wrong(home: Any) -> None:
    (home.folder / "c.toml").write_text("[execution]\nmax_input_bytes = -1\n")
    told = home.spear("doctor", "--config", "c.toml")
    assert told.status == 1
    assert " ! config" in told.out
    assert "execution.max_input_bytes" in told.out


def test_config_check_reports_everything(home: Any) -> None:
    (home.folder / "c.toml").write_text("[pool]\nmax_instances = 0\n[plugins.nope]\n[executoin]\n")
    told = home.spear("config", "check", "c.toml")
    assert told.status == 2
    assert [w in told.err for w in ("pool.max_instances", "plugins.nope", "executoin")] == [
        True
    ] * 3
    (home.folder / "c.toml").write_text("[pool]\nmax_instances = 3\n")
    assert home.spear("config", "check", "--config", "c.toml").out == "c.toml: no problems\n"
    assert home.spear("config", "check").out == "no configuration file; the defaults apply\n"


def test_plugins_are_listed_without_a_node(home: Any) -> None:
    lines = home.spear("plugins").out.splitlines()
    (wasm,) = [line.split() for line in lines if line.startswith("runtime-wasm ")]
    assert wasm[1:5] == ["spear-runtime-wasm", "0.1.0", "loaded", "healthy"]
