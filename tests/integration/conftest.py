"""Real nodes in processes of their own, with every runtime that is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

SPEAR = str(Path(sys.executable).with_name("spear"))


@attrs.frozen
class NodeProcess:
    """A running node and where it is reached."""

    process: subprocess.Popen[bytes]
    state: Path

    @property
    def url(self) -> str:
        return f"unix://{self.state}/node.sock"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def _running_node(folder: Path, config: str) -> Iterator[NodeProcess]:
    settings = folder / "config.toml"
    settings.write_text(config)
    state = folder / "state"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPEAR_", "XDG_"))}
    with (folder / "node.err").open("wb") as stderr:
        process = subprocess.Popen(
            [SPEAR, "node", "--state-dir", str(state), "--config", str(settings)],
            env={**kept, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith(b"ready: unix://"), (folder / "node.err").read_text()
        yield NodeProcess(process, state)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    """One node for all tests of a module, each with artifacts of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="spear-") as folder,
        _running_node(Path(folder), "[execution]\nshutdown_grace_ms = 100\n") as running,
    ):
        yield running


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[Callable[[str], NodeProcess]]:
    """Starts a node of the test's own, with this configuration."""
    with ExitStack() as stack:

        def start(config: str = "") -> NodeProcess:
            return stack.enter_context(_running_node(tmp_path, config))

        yield start
