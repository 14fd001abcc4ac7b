"""A full disk for logs, a read-only state directory, an unreadable configuration."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

FULL_FOR_LOGS = """
set -e
mkdir -p "$SPEAR_STATE_DIR/logs"
mount -t tmpfs -o size=64k none "$SPEAR_STATE_DIR/logs"
exec "$@"
"""
SMALL_FILES = 'ulimit -f 64; exec "$@"'  # in blocks of 512 or of 1024 bytes, as the shell likes
SMALL_STORE = """
set -e
mkdir -p "$SPEAR_STATE_DIR/plugins"
mount -t tmpfs -o size=16m none "$SPEAR_STATE_DIR/plugins"
exec "$@"
"""
READ_ONLY = """
mkdir -p "$SPEAR_STATE_DIR"
mount --bind "$SPEAR_STATE_DIR" "$SPEAR_STATE_DIR"
mount -o remount,bind,ro "$SPEAR_STATE_DIR"
exec "$@"
"""


def chatter_on_a_full_disk(home: Any, node: Any, reason: str) -> None:
    """A function that logs 100 KiB on that node still answers, and its log says what is missing."""
    home.deploy_functions()
    task_id = home.spear("invoke", "bad:chatter", "--async", "--input", "1000").out.strip()
    told = home.spear("result", task_id, "--wait")
    assert (told.status, told.out) == (0, "still here"), told.err
    lines = home.spear("logs", task_id).out.splitlines()
    assert lines[0].startswith("info: 000000"), "what fitted is kept"
    assert 10 < len(lines) < 1000
    assert "log entries were dropped" in lines[-1]
    assert reason in lines[-1]
    again = home.spear("invoke", "bad:nap", "--input", "0")
    assert (again.status, again.out) == (0, "slept 0"), again.err
    assert node.stop() == 0


def test_a_full_disk_for_logs(home: Any, mounts: str) -> None:
    script = f"exec {mounts} sh -c '{FULL_FOR_LOGS}' sh \"$@\""
    chatter_on_a_full_disk(home, home.node(wrapper=script), "No space left on device")


def test_a_log_file_that_may_not_grow(home: Any) -> None:
    (home.folder / "off.toml").write_text('[stores]\nmetadata = "memory"\n')
    node = home.node("--config", str(home.folder / "off.toml"), wrapper=SMALL_FILES)
    chatter_on_a_full_disk(home, node, "File too large")


def test_a_read_only_state_directory(home: Any, mounts: str) -> None:
    wrapper = [*mounts.split(), "sh", "-c", READ_ONLY, "sh"]
    told = home.spear("node", wrapper=wrapper)
    assert told.status == 2
    assert "Read-only file system" in told.err
    assert str(home.state) in told.err
    assert "--state-dir" in told.err
    assert "Traceback" not in told.err


def test_run_needs_no_writable_state_directory(home: Any, mounts: str) -> None:
    wrapper = [*mounts.split(), "sh", "-c", READ_ONLY, "sh"]
    script = home.folder / "up.sh"
    script.write_text("#!/bin/sh\ntr a-z A-Z\n")
    told = home.spear("run", str(script), "--input", "shout", wrapper=wrapper)
    assert (told.status, told.out) == (0, "SHOUT"), told.err


def test_a_state_directory_that_cannot_be_made(home: Any) -> None:
    (home.folder / "file").write_text("")
    told = home.spear("node", "--state-dir", str(home.folder / "file" / "state"))
    assert told.status == 2
    assert "Not a directory" in told.err
    assert "Traceback" not in told.err


def unprivileged() -> list[str]:
    """A wrapper under which file modes count for root too."""
    wrapper = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    if shutil.which("setpriv") and not subprocess.run([*wrapper, "true"], check=False).returncode:
        return wrapper
    return []


@pytest.mark.parametrize("command", [["node"], ["config", "check"]])
def test_a_config_that_may_not_be_read(home: Any, command: list[str]) -> None:
    path = home.folder / "secret.toml"
    path.write_text("[execution]\n")
    path.chmod(0)
    option = [str(path)] if command[0] == "config" else ["--config", str(path)]
    told = home.spear(*command, *option, wrapper=unprivileged())
    assert told.status == 2
    assert str(path) in told.err
    assert "not readable" in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"[execution\n", "line 1"),
        (b"name = '\xff'\n", "UTF-8"),
        (b"[execution]\nmax_tasks = 1\n", "execution.max_tasks"),
    ],
)
def test_a_config_that_is_no_config(home: Any, content: bytes | None, reason: str) -> None:
    path: Path = home.folder / "node.toml"
    if content is not None:
        path.write_bytes(content)
    told = home.spear("node", "--config", str(path))
    assert told.status == 2
    assert str(path) in told.err
    assert reason in told.err
    assert "Traceback" not in told.err
    assert not home.state.exists(), "nothing is made before the configuration is known to be good"


def test_a_config_that_is_a_directory(home: Any) -> None:
    told = home.spear("node", "--config", str(home.folder))
    assert told.status == 2
    assert "directory" in told.err


def fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_for_tasks(home: Any, mounts: str) -> None:
    node = home.node(wrapper=f"exec {mounts} sh -c '{SMALL_STORE}' sh \"$@\"")
    home.deploy_functions()
    large = "0" + " " * 60_000  # the same number, and no room that was free before is enough

    def submit() -> Any:
        return home.spear("invoke", "bad:nap", "--input", large, "--async")

    accepted = [submit().out.strip()]
    assert home.spear("result", accepted[0], "--wait").out.startswith("slept 0")
    # What the node has mounted, seen from here.
    filler = Path(f"/proc/{node.process.pid}/root{home.state}/plugins/filler")
    fill(filler)
    while (told := submit()).status == 0:  # the store has a little room of its own
        accepted.append(told.out.strip())
        assert len(accepted) < 50
        fill(filler)
    assert (told.status, told.out) == (5, ""), told.err
    assert "not accepted" in told.err
    assert "no room left" in told.err
    assert "Traceback" not in told.err
    assert home.spear("result", accepted[0]).out.startswith("slept 0"), "what is there can be read"
    filler.unlink()

    def again() -> bool:
        told = submit()
        accepted.extend([told.out.strip()] if told.status == 0 else [])
        return bool(told.status == 0)

    home.wait_until(again, "the node takes tasks again")
    for task_id in accepted:
        assert home.spear("result", task_id, "--wait").out.startswith("slept 0")
    assert {task["task_id"] for task in node.listed("ps")} == set(accepted)
    assert node.stop() == 0
