"""What a node is made of, from the ground up: what its tasks use, and what runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import attrs

from spear_core.api import MetadataStore
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._background import Background, open_background
from spear_core.node._channels import NodeChannels
from spear_core.node._deploying import Deployer
from spear_core.node._executor import Executor, open_executor
from spear_core.node._ground import Ground
from spear_core.node._hostcalls import NodeHostcalls
from spear_core.node._invocations import Invocations
from spear_core.node._journal import TaskJournal, open_journal
from spear_core.node._kept_state import KeptState, open_kept_state
from spear_core.node._services import ContextMaker, Services
from spear_core.node._task_log import TaskLogDirectory
from spear_core.node._task_objects import TaskObjects, open_task_objects
from spear_core.node._task_table import TaskTable
from spear_core.node._tracing import Tracing, open_tracing

__all__ = ["Engine", "Resources", "open_engine", "open_resources"]


@attrs.frozen(kw_only=True)
class Resources:
    """What tasks use, and what they leave."""

    node_id: str
    services: Services
    hostcalls: NodeHostcalls
    artifacts: ArtifactStore
    tasks: TaskTable
    logs: TaskLogDirectory
    objects: TaskObjects
    store: MetadataStore | None
    """``None``: it does not last."""
    background: Background


@attrs.frozen(kw_only=True)
class Engine:
    """What makes tasks of requests, and runs them."""

    executor: Executor
    deployer: Deployer
    invocations: Invocations
    tracing: Tracing | None
    journal: TaskJournal | None
    """``None``: no task outlives the node."""


@asynccontextmanager
async def open_resources(ground: Ground) -> AsyncIterator[Resources]:
    """Closing it closes the plugins' parts."""
    config, log = ground.config, ground.log
    logs = TaskLogDirectory(
        ground.paths.task_logs,
        max_bytes=config.logs.max_task_log_bytes,
        max_total_bytes=config.logs.max_total_bytes,
        warn=log.warning,
    )
    tasks = _task_table(ground, logs)
    async with AsyncExitStack() as stack:
        background = await stack.enter_async_context(open_background())
        maker = ContextMaker(
            node_id=ground.node_id,
            plugins_dir=ground.paths.plugins,
            cache_dir=ground.cache,
            run_dir=ground.run_dir,
            spearlet=config,
            report=lambda artifact, message: artifacts.report(artifact, message),
            ephemeral=ground.ephemeral,
        )
        services = Services(ground.plugins, ground.settings, maker, background=background, log=log)
        objects = await stack.enter_async_context(
            open_task_objects(services.object_store, config, log=log)
        )
        tasks.attach(objects)
        hostcalls = NodeHostcalls(
            services, ground.plugins, tasks, log=log, secrets=ground.secrets, objects=objects
        )
        kept = await _remembered(ground, services, hostcalls)
        artifacts = ArtifactStore(
            ground.paths.artifacts,
            warn=log.warning,
            config=config.artifacts,
            names=kept.names,
            sweep=kept.complete,
        )
        yield Resources(
            node_id=kept.node_id,
            services=services,
            hostcalls=hostcalls,
            artifacts=artifacts,
            tasks=tasks,
            logs=logs,
            objects=objects,
            store=kept.store,
            background=background,
        )


def _task_table(ground: Ground, logs: TaskLogDirectory) -> TaskTable:
    config = ground.config.tasks
    return TaskTable(
        logs,
        keep_finished=max(config.keep_finished, int(ground.ephemeral)),  # its one task's result
        keep_finished_bytes=config.keep_finished_bytes,
        keep_finished_s=config.keep_finished_ms / 1000,
    )


async def _remembered(ground: Ground, services: Services, hostcalls: NodeHostcalls) -> KeptState:
    """What the node keeps for life. Its plugins get to know who it is, as that has it."""

    def attach(node_id: str) -> None:
        channels = NodeChannels(services, ground.plugins, node_id=node_id, log=ground.log)
        services.attach(hostcalls, channels)

    attach(ground.node_id)
    kept = await open_kept_state(
        services, ground.paths, lasting=ground.lasting, node_id=ground.node_id, log=ground.log
    )
    if kept.node_id != ground.node_id:
        services.identify(kept.node_id)
        attach(kept.node_id)
    return kept


@asynccontextmanager
async def open_engine(ground: Ground, resources: Resources) -> AsyncIterator[Engine]:
    """Closing it ends the instances, and writes what is still to be written of tasks."""
    config, log = ground.config, ground.log
    services, artifacts, objects = resources.services, resources.artifacts, resources.objects
    async with AsyncExitStack() as stack:
        journal = None
        if resources.store is not None and ground.durable:
            journal = await stack.enter_async_context(
                open_journal(resources.store, services.object_store, log, hold=objects.hold)
            )
        tracing = await stack.enter_async_context(
            open_tracing(ground.plugins, services.tracer, log)
        )
        executor = await stack.enter_async_context(
            open_executor(
                services,
                artifacts,
                resources.tasks,
                config,
                node_id=resources.node_id,
                log=log,
                secrets=ground.secrets,
                objects=None if ground.ephemeral else objects,
            )
        )
        deployer = Deployer(
            artifacts,
            executor,
            plugins=ground.plugins,
            services=services,
            secrets=ground.secrets,
            log=log,
        )
        invocations = Invocations(
            services,
            artifacts=artifacts,
            tasks=resources.tasks,
            executor=executor,
            config=config,
            tracing=tracing,
            journal=journal,
            objects=objects,
        )
        yield Engine(
            executor=executor,
            deployer=deployer,
            invocations=invocations,
            tracing=tracing,
            journal=journal,
        )
