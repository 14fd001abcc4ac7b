"""The two launchers of a runtime, started when first needed and again when they have died."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator

import trio

from spear_runtime_process._config import STANDARD_PRELOAD, ProcessConfig
from spear_runtime_process._launcher import Launcher, open_launcher
from spear_runtime_process._nursery import open_service_nursery

SDK_WORKER = "spear_sdk.worker"
_MAX_FAILURES = 3


class Launchers:
    """Gives out the plain launcher and the zygote. Made by :func:`open_launchers`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        config: ProcessConfig,
        log: logging.Logger,
        *,
        open_files: int | None,
    ) -> None:
        self._nursery = nursery
        self._scopes: list[trio.CancelScope] = []
        self._config = config
        self._log = log
        self._open_files = open_files
        self._starting = trio.Lock()
        self._plain: Launcher | None = None
        self._zygote: Launcher | None = None
        self._zygote_failures = 0

    async def plain(self) -> Launcher:
        """The launcher that executes programs."""
        async with self._starting:
            launcher = self._plain
            if launcher is None or launcher.unfit:
                launcher = self._plain = await self._start(False)
            return launcher

    async def zygote(self) -> Launcher | None:
        """The launcher that forks agents; None when it is switched off or keeps failing."""
        if self._config.zygote == "off" or self._zygote_failures >= _MAX_FAILURES:
            return None
        async with self._starting:
            launcher = self._zygote
            if launcher is None or launcher.unfit:
                launcher = self._zygote = await self._start(True)
            return launcher

    async def wait_serving(self) -> None:
        """Wait until those that somebody has needed so far say that they serve.

        One that has died is started again for it. Raises: OSError or InstanceStartError when that
        is not possible.
        """
        if self._plain is not None:
            await (await self.plain()).wait_serving()
        if self._zygote is not None and (zygote := await self.zygote()) is not None:
            await zygote.wait_serving()

    async def _start(self, zygote: bool) -> Launcher:
        # If we were cancelled now, trio would leave the task, which is shielded, in our nursery,
        # and we would wait for it for ever. Up to its start it waits for nothing.
        started: list[Launcher] = []
        with trio.CancelScope(shield=True):
            started.append(await self._nursery.start(self._run, zygote))
        return started[0]

    async def _run(
        self, zygote: bool, task_status: trio.TaskStatus[Launcher] = trio.TASK_STATUS_IGNORED
    ) -> None:
        first = [SDK_WORKER] if zygote else None
        later = [*self._config.preload, *STANDARD_PRELOAD] if zygote else []
        name = "zygote" if zygote else "launcher"
        with trio.CancelScope(shield=True) as scope:  # it outlives the guests that need it
            self._scopes.append(scope)
            async with open_launcher(
                self._log, first=first, later=later, open_files=self._open_files
            ) as launcher:
                task_status.started(launcher)
                await launcher.wait_unfit()
                self._zygote_failures += zygote
                self._log.warning("the %s is of no more use: %s", name, launcher.unfit)
                await launcher.wait_ended()
            self._scopes.remove(scope)

    def close(self) -> None:
        """End them and whatever guests they still have."""
        for scope in self._scopes:
            scope.cancel()


@contextlib.asynccontextmanager
async def open_launchers(
    config: ProcessConfig, log: logging.Logger, *, open_files: int | None = None
) -> AsyncGenerator[Launchers]:
    """Launchers for as long as the block lasts, also while it ends by a cancellation.

    :param open_files: the soft limit of theirs, and of guests without limits; ``None``: as ours.
    """
    async with open_service_nursery() as nursery:
        launchers = Launchers(nursery, config, log, open_files=open_files)
        if config.zygote == "start":
            await launchers.zygote()
        try:
            yield launchers
        finally:
            launchers.close()
