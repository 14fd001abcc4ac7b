"""Launchers: started for whoever needs one first, and kept."""

from __future__ import annotations

import logging

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
        with trio.fail_after(20):
            with trio.CancelScope() as scope:
                instrument = _CancelBeforeItRuns(scope)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await launchers.plain()
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            assert instrument.struck
            assert await launchers.plain() is await launchers.plain()
