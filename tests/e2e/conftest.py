"""A real ``spear node`` in a process of its own, and the real command line to talk to it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest

SPEAR = str(Path(sys.executable).with_name("spear"))
FUNCTIONS = '''
"""Functions to have bad days with."""

import os
import time

from spear_sdk import Context, function


@function
def nap(seconds: str) -> str:
    """Sleep, then say so."""
    time.sleep(float(seconds))
    return f"slept {seconds}"


@function
def chatter(lines: str, context: Context) -> str:
    """Log a lot, then answer all the same."""
    for number in range(int(lines)):
        context.log.info("%06d %s", number, "x" * 100)
    return "still here"


@function
def pid(data: bytes) -> str:
    """The worker's own process id, as it sees it."""
    return str(os.getpid())
'''


def wait_until(condition: Callable[[], Any], what: str, *, within: float = 120.0) -> Any:
    """The first true value of ``condition``; fails with ``what`` when none comes in time."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)
    return value


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether none of them runs any more (a zombie without a parent that waits is not running)."""
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def answers(path: Path) -> bool:
    """Whether somebody listens on that socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@attrs.frozen
class Told:
    """What a command of ours said."""

    status: int
    out: str
    err: str


@attrs.define
class Home:
    """A folder to run SPEAR in: a state directory, a few functions, nothing of the user's."""

    wait_until = staticmethod(wait_until)
    gone = staticmethod(gone)
    answers = staticmethod(answers)

    folder: Path
    processes: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def environ(self) -> dict[str, str]:
        """The environment of every process here."""
        ours = {"HOME": str(self.folder), "SPEAR_STATE_DIR": str(self.state), "COLUMNS": "200"}
        dropped = ("SPEAR_", "XDG_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        return {**kept, **ours}

    def spear(
        self, *args: str, stdin: bytes = b"", wrapper: Sequence[str] = (), within: float = 120
    ) -> Told:
        """Run a command to its end."""
        done = subprocess.run(
            [*wrapper, SPEAR, *args],
            cwd=self.folder,
            env=self.environ(),
            input=stdin,
            capture_output=True,
            timeout=within,
            check=False,
        )
        return Told(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """Start a command and leave it running; what it says goes to pipes."""
        process = subprocess.Popen(
            [SPEAR, *args],
            cwd=self.folder,
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    def node(self, *args: str, wrapper: str = "") -> NodeProcess:
        """Start a node and wait until it is ready.

        :param wrapper: a shell script in which ``"$@"`` is the node's command.
        """
        log = self.folder / f"node-{len(self.processes)}.err"
        command = [SPEAR, "node", *args]
        if wrapper:
            command = ["sh", "-c", wrapper, "sh", *command]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        self.processes.append(process)
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith(b"ready: unix://"), log.read_text()
        return NodeProcess(self, process, log)

    def deploy_functions(self) -> None:
        """Deploy the functions above as ``bad``."""
        file = self.folder / "bad.py"
        file.write_text(FUNCTIONS)
        told = self.spear("deploy", str(file), "--name", "bad")
        assert told.status == 0, told.err


@attrs.frozen
class NodeProcess:
    """A running node."""

    home: Home
    process: subprocess.Popen[bytes]
    log: Path

    def below(self) -> list[psutil.Process]:
        """Every process that the node has started and that lives."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def listed(self, what: str) -> list[dict[str, Any]]:
        """``spear WHAT --json``."""
        told = self.home.spear(what, "--json")
        assert told.status == 0, told.err
        found = json.loads(told.out)
        assert isinstance(found, list)
        return found

    def running_instance(self, artifact: str = "bad@1") -> dict[str, Any]:
        """The instance that is busy with a task of that artifact, once the task is said to run.

        A moment before, it is only taken for the task: were it killed, another one would do.
        """

        def look() -> dict[str, Any] | None:
            running = [task for task in self.listed("ps") if task["state"] == "running"]
            if artifact not in [task["function"].partition(":")[0] for task in running]:
                return None
            busy = [i for i in self.listed("instances") if i["state"] == "running"]
            return next((i for i in busy if i["artifact"] == artifact and i["pid"]), None)

        found: dict[str, Any] = wait_until(look, f"an instance of {artifact} runs")
        return found

    def stop(self, number: int = signal.SIGTERM, *, within: float = 120) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(within)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home; whatever was started in it is killed at the end."""
    home = Home(tmp_path)
    try:
        yield home
    finally:
        for process in home.processes:
            left = []
            with suppress(psutil.NoSuchProcess):
                left = psutil.Process(process.pid).children(recursive=True)
            if process.poll() is None:
                process.kill()
            for child in left:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.communicate()


@pytest.fixture(scope="session")
def mounts() -> str:
    """A command that runs another one with mounts of its own; skips where that is not possible."""
    for option in ("--mount", "--user --map-root-user --mount"):
        command = f"unshare {option}"
        probe = f'{command} sh -c "mount -t tmpfs none /mnt"'
        with suppress(OSError):
            if subprocess.run(shlex.split(probe), capture_output=True, check=False).returncode == 0:
                return command
    pytest.skip("needs mount namespaces (unshare --mount)")
