"""Launchers: started for whoever needs one first, and kept."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator

import trio

from spear_runtime_process._config import ProcessConfig
from spear_runtime_process._launchers import open_launchers

_LOG = logging.getLogger("test")


class _CancelBeforeItRuns(trio.abc.Instrument):
    """Cancels a scope just before the task that starts a launcher begins to run."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self.struck = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith("Launchers._run"):
            self.struck = True
            self._scope.cancel()


async def test_who_is_cancelled_while_one_starts_leaves_and_the_next_has_it() -> None:
    async with open_launchers(ProcessConfig(), _LOG) as launchers:
        with trio.fail_after(60):
            with trio.CancelScope() as scope:
                instrument = _CancelBeforeItRuns(scope)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await launchers.plain()
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            assert instrument.struck
            assert await launchers.plain() is await launchers.plain()


async def test_nobody_has_to_answer_before_a_launcher_was_needed() -> None:
    async with open_launchers(ProcessConfig(), _LOG) as launchers:
        await launchers.wait_serving()


async def test_one_that_is_stopped_says_nothing_and_is_asked_once_until_it_goes_on() -> None:
    async with open_launchers(ProcessConfig(), _LOG) as launchers:
        with trio.fail_after(60):
            plain, zygote = await launchers.plain(), await launchers.zygote()
            assert zygote is not None
            await launchers.wait_serving()
            for launcher in (plain, zygote):
                asked = launcher._last_id
                with _stopped(launcher.pid):
                    for _ in range(3):
                        with trio.move_on_after(0.05) as patience:
                            await launchers.wait_serving()
                        assert patience.cancelled_caught
                assert launcher._last_id <= asked + 1
                await launchers.wait_serving()


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_one_that_was_killed_is_started_again_to_answer() -> None:
    async with open_launchers(ProcessConfig(), _LOG) as launchers:
        with trio.fail_after(60):
            killed = await launchers.plain()
            os.kill(killed.pid, signal.SIGKILL)
            await killed.wait_unfit()
            await launchers.wait_serving()
            assert (await launchers.plain()).pid != killed.pid
