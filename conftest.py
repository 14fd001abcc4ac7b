"""What every test stands on, and how a whole run is shared out among several processes.

Much of the suite waits for nodes, workers and guests to begin and to end: a whole run (``pytest``
with no path) goes through it with several processes, file by file. A run of a part stays in its one
process; ``-n 3`` shares that out, too.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before its first program, zig builds a libc, for a quarter of a minute: once is enough, whatever
# HOME a test gives to what it starts.
os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(Path.home() / ".cache" / "zig"))

# How long an example takes says how busy the machine is, and is no reason to fail.
settings.register_profile(
    "spear", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("spear")

LEAST, MOST = 2, 4
"""Processes of a whole run. Each test may have a node, workers and guests besides: with more
processes than cores, those that wait for something to happen would wait for long."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Of ``-n auto``, which ``pyproject.toml`` says: 0 is no process but this one."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return min(max(len(os.sched_getaffinity(0)), LEAST), MOST)


class Turns:
    """Tests marked ``alone`` take turns with all others, over all the processes of a run."""

    def __init__(self, folder: Path) -> None:
        self._gate = (folder / "turns-gate").open("w")
        self._room = (folder / "turns-room").open("w")

    @contextmanager
    def taken(self, *, alone: bool) -> Iterator[None]:
        """Be among others that run, or the only one. Blocks."""
        # Who waits to be alone stands in the gate: no others slip past, again and again.
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)

    def close(self) -> None:
        self._gate.close()
        self._room.close()


TURNS = pytest.StashKey[Turns]()


def pytest_collection_finish() -> None:
    """What is collected stays: looking for garbage, which many tests do, need not look there."""
    gc.collect()
    gc.freeze()


def hear_of_signals(*, starts_others: bool) -> None:
    """A shell starts a job in the background with SIGINT ignored, and nohup one with SIGHUP;
    children inherit that, and a command that finds a signal ignored leaves it so. The tests send
    both."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not starts_others:
        signal.signal(signal.SIGHUP, lambda number, frame: None)  # which children do not inherit


def pytest_configure(config: pytest.Config) -> None:
    hear_of_signals(starts_others=bool(config.getoption("numprocesses", None)))
    if hasattr(config, "workerinput"):  # its temporary folder is in that of the run
        turns = config.stash[TURNS] = Turns(Path(config.getoption("basetemp")).parent)
        config.add_cleanup(turns.close)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        return (yield)
    with turns.taken(alone=item.get_closest_marker("alone") is not None):
        return (yield)
