"""A node in a process of its own, as `spear node` starts it, and a client to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import attrs

from spear_core.api import NodeApi
from spear_core.node.paths import StatePaths
from spear_core.plugins import load_plugins

_BYTECODE = tempfile.TemporaryDirectory(prefix="spear-bench-")
"""Where every Python started here keeps its bytecode, so that the second start is an ordinary one
also where nothing may be written beside the sources."""

AGENT = b"""
from spear_sdk import function

@function
def echo(data: bytes) -> bytes:
    return data
"""


def environ() -> dict[str, str]:
    """The environment of every process that is measured."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": _BYTECODE.name}


@attrs.frozen
class NodeProcess:
    """A running node."""

    process: subprocess.Popen[bytes]
    paths: StatePaths
    started_in: float
    """Seconds from the start of the process until it said that it is ready."""

    def connect(self) -> AbstractAsyncContextManager[NodeApi]:
        """A client."""
        return connect(self.paths.url)


def connect(url: str) -> AbstractAsyncContextManager[NodeApi]:
    """A client of the node at that URL."""
    door = load_plugins(["builtins"]).front_doors["local-socket"].spec
    return door.connect(url)


@contextmanager
def run_node(*options: str, config: str = '[tasks]\ndurable = "off"\n') -> Iterator[NodeProcess]:
    """A node on a state directory of its own; it must stop cleanly in the end.

    :param config: unless the options name a file. By default tasks are in memory, so that nobody
        measures the disk who does not mean to.
    """
    with tempfile.TemporaryDirectory(prefix="spear-bench-") as folder:
        paths = StatePaths(Path(folder) / "state")
        command = [sys.executable, "-m", "spear_core.cli", "node"]
        home = {"HOME": folder, "XDG_CONFIG_HOME": folder}
        log = Path(folder) / "node.log"
        if "--config" not in options:
            (Path(folder) / "node.toml").write_text(config)
            options = (*options, "--config", f"{folder}/node.toml")
        started = time.perf_counter()
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*command, "--state-dir", str(paths.root), *options],
                env={**environ(), **home},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"the node did not start: {log.read_text()}")
            yield NodeProcess(process, paths, time.perf_counter() - started)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        if process.returncode != 0:
            raise RuntimeError(f"the node ended with {process.returncode}: {log.read_text()}")
