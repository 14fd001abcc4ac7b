"""The runtime `process`: looks at the machine, prepares code, opens instances."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from spear_core.api import (
    Artifact,
    Fingerprint,
    Health,
    Instance,
    InstanceSpec,
    PluginContext,
    Runtime,
)
from spear_core.errors import InstanceStartError, RuntimeFault, UnsupportedArtifactError
from spear_runtime_process._agent import open_agent
from spear_runtime_process._command import CommandInstance
from spear_runtime_process._config import ProcessConfig
from spear_runtime_process._environments import Environments
from spear_runtime_process._launchers import Launchers, open_launchers
from spear_runtime_process._machine import Machine, look_around
from spear_runtime_process._place import Place, install
from spear_runtime_process._plan import Confiner, make_plan
from spear_runtime_process._recognise import AGENT, COMMAND, command_line
from spear_runtime_process._workspace import open_workspace

_FRESH_SECONDS = 30.0
"""How long what was found out about the machine is taken for true."""

_PATIENCE_SECONDS = 4.0
"""How long a launcher may take to say that it serves; an import of a zygote is not that long."""

_AGAIN_SECONDS = 0.5
"""… and one that was silent for so long, when somebody asks again."""


class ProcessRuntime(Runtime):
    """Makes commands and agents. Made by :func:`open_runtime`."""

    def __init__(
        self,
        context: PluginContext,
        config: ProcessConfig,
        *,
        machine: Machine,
        launchers: Launchers,
        workspace: Path,
        environments: Environments,
    ) -> None:
        self._context = context
        self._config = config
        self._machine = machine
        self._looked_at = trio.current_time()
        self._launchers = launchers
        self._silent = False
        self._environments = environments
        self._code = workspace / "code"
        self._scratch = workspace / "scratch"

    async def fingerprint(self) -> Fingerprint:
        """Whether processes can be started, and the layers of isolation, each as found by trying
        it."""
        if trouble := await self._trouble():
            return Fingerprint(health=Health.UNHEALTHY, message=trouble)
        if trio.current_time() - self._looked_at > _FRESH_SECONDS:
            self._machine = await look_around(
                bwrap=self._config.bwrap, use_cgroups=self._config.use_cgroups
            )
            self._looked_at = trio.current_time()
        level = self._machine.reachable.name.lower()
        return Fingerprint(
            health=Health.HEALTHY,
            message=f"isolation up to level {level!r}",
            details={**self._machine.details(), "requirements": self._environments.installer()},
        )

    async def _trouble(self) -> str:
        """Why no process can be started; empty where nothing speaks against it."""
        with trio.move_on_after(_AGAIN_SECONDS if self._silent else _PATIENCE_SECONDS) as patience:
            try:
                await self._launchers.wait_serving()
            except (OSError, InstanceStartError) as error:
                self._silent = False
                return f"no process can be started: {error}"
        self._silent = patience.cancelled_caught
        if self._silent:
            return (
                "the launcher of processes has not answered for "
                f"{_PATIENCE_SECONDS:g} s: it is stopped, still imports what `preload` names, or "
                "the machine is far too busy"
            )
        return ""

    def _place(self, artifact: Artifact) -> Place:
        """Where the code stands under its own name, which interpreters and tracebacks show."""
        return Place.of(artifact, self._code, self._environments.site(artifact.requirements))

    async def prepare(self, artifact: Artifact) -> None:
        """Put an executable copy in place, install what it requires, see whether it can run."""
        if artifact.shape not in (AGENT, COMMAND):
            raise UnsupportedArtifactError(
                f"{artifact.ref}: the process runtime knows {AGENT!r} and {COMMAND!r}, "
                f"no shape {artifact.shape!r}"
            )
        make_plan(artifact, self._config, self._machine)
        place = self._place(artifact)
        try:
            await trio.to_thread.run_sync(install, artifact, place)
        except OSError as exc:
            raise RuntimeFault(f"{artifact.ref}: cannot copy its code: {exc}") from exc
        if artifact.shape == COMMAND:
            command_line(place.file)
            if artifact.requirements and place.file.suffix != ".py":
                raise UnsupportedArtifactError(
                    f"{artifact.ref} has Python requirements, and {place.file.name} is no .py file"
                )
        await self._environments.provide(
            artifact, lambda message: self._context.report(artifact, message)
        )

    async def retain(self, artifacts: Sequence[Artifact]) -> None:
        """Remove installed requirements that nobody needs."""
        await self._environments.retain(artifacts)

    def open_instance(self, spec: InstanceSpec) -> AbstractAsyncContextManager[Instance]:
        """An agent's worker, started; or the means to run a command."""
        artifact = spec.artifact
        plan = make_plan(artifact, self._config, self._machine)
        confiner = Confiner(config=self._config, machine=self._machine)
        if artifact.shape == AGENT:
            return open_agent(
                spec,
                code=self._place(artifact),
                plan=plan,
                confiner=confiner,
                launchers=self._launchers,
                context=self._context,
                scratch=self._scratch,
            )
        command = CommandInstance(
            spec,
            code=self._place(artifact),
            plan=plan,
            confiner=confiner,
            launchers=self._launchers,
            hostcalls=self._context.hostcalls,
            scratch=self._scratch,
            log_bytes=self._context.spearlet_config.logs.max_task_log_bytes,
        )
        return contextlib.nullcontext(command)


@contextlib.asynccontextmanager
async def _open_workspace(cache: Path) -> AsyncGenerator[Path]:
    """A directory of this node's own; others may use the same cache."""
    workspace = open_workspace(cache)
    place = await trio.to_thread.run_sync(workspace.__enter__)
    try:
        yield place
    finally:
        with trio.CancelScope(shield=True):  # ends by itself: it only removes files
            await trio.to_thread.run_sync(workspace.__exit__, None, None, None)


@contextlib.asynccontextmanager
async def open_runtime(
    context: PluginContext, config: ProcessConfig
) -> AsyncGenerator[ProcessRuntime]:
    """The runtime of one node, while the block lasts; all its processes end with it."""
    machine = await look_around(bwrap=config.bwrap, use_cgroups=config.use_cgroups)
    environments = Environments(
        context.cache_dir / "environments",
        config,
        node_id="" if context.ephemeral else context.node_id,
    )
    async with (
        _open_workspace(context.cache_dir) as workspace,
        open_launchers(config, context.log, open_files=context.usual_open_files) as launchers,
    ):
        with contextlib.closing(environments):
            yield ProcessRuntime(
                context,
                config,
                machine=machine,
                launchers=launchers,
                workspace=workspace,
                environments=environments,
            )
