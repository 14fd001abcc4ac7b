"""Putting a node together, and taking it apart in order."""

from __future__ import annotations

import logging
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import trio

from spear_core.api import FrontDoorContext, NodeApi, RuntimeInfo, SpearletConfig
from spear_core.config import NodeSettings
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._background import open_background
from spear_core.node._channels import NodeChannels
from spear_core.node._deploying import Deployer
from spear_core.node._executor import Executor, open_executor
from spear_core.node._function_calls import TaskCalls
from spear_core.node._hostcalls import NodeHostcalls
from spear_core.node._invocations import Invocations
from spear_core.node._journal import open_journal
from spear_core.node._kept_state import check_store, open_kept_state
from spear_core.node._local_node import LocalNode, NodeIdentity
from spear_core.node._node_backup import NodeBackups
from spear_core.node._reloading import Reloader
from spear_core.node._restoring import Restorer
from spear_core.node._secrets import Secrets, struck_out
from spear_core.node._services import ContextMaker, Services
from spear_core.node._state import hold_state, open_run_dir
from spear_core.node._stores import objects_last, tasks_are_durable
from spear_core.node._system_log import open_system_log
from spear_core.node._task_log import TaskLogDirectory
from spear_core.node._task_objects import open_task_objects
from spear_core.node._tasks import TaskTable
from spear_core.node._tracing import open_tracing
from spear_core.node.paths import StatePaths
from spear_core.plugins import Plugins

__all__ = ["Node", "open_node", "serve_node"]


@attrs.define(eq=False)
class Node:
    """An open node."""

    api: NodeApi
    urls: tuple[str, ...]
    """Where clients reach it; empty when it serves nobody."""
    _local: LocalNode
    _executor: Executor
    _hurry: trio.Event = attrs.field(factory=trio.Event)

    async def probe(self) -> Sequence[RuntimeInfo]:
        """Open every runtime and ask it about this machine; what fails is an answer too."""
        return await self._local.runtimes(only_open=False)

    def hurry(self) -> None:
        """Do not wait for running tasks when stopping."""
        self._hurry.set()

    async def drain(self) -> None:
        """Refuse new work; wait for the running tasks for the grace period, then cancel them."""
        self._local.stop_accepting()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_on_hurry, nursery.cancel_scope)
            await self._executor.drain(self._local.grace_s)
            nursery.cancel_scope.cancel()
        await self._executor.drain(0)

    async def _cancel_on_hurry(self, scope: trio.CancelScope) -> None:
        await self._hurry.wait()
        scope.cancel()


@contextmanager
def _ephemeral(paths: StatePaths) -> Iterator[tuple[StatePaths, Path]]:
    """State for one run that leaves nothing behind but its caches."""
    with tempfile.TemporaryDirectory(prefix="spear-") as directory:
        temporary = StatePaths(Path(directory))
        yield temporary, _usable_cache(paths.cache) or temporary.cache


def _usable_cache(path: Path) -> Path | None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return None
    return path


@asynccontextmanager
async def open_node(
    settings: NodeSettings,
    plugins: Plugins,
    *,
    state_dir: Path,
    serve: bool = True,
    ephemeral: bool = False,
) -> AsyncIterator[Node]:
    """A node, open for work.

    :param serve: open the front doors. :param ephemeral: keep nothing but caches in ``state_dir``,
        and do not lock it.

    Leaving the block normally stops in order: no new work, running tasks until the grace period,
    front doors, instances, plugins, the lock. **Cancellation** of the block stops at once, but
    still leaves no process, socket or lock behind.

    **Raises** :exc:`~spear_core.errors.NodeAlreadyRunningError`,
    :exc:`~spear_core.errors.ConfigError` (the state directory cannot be used),
    :exc:`~spear_core.errors.StoreError` (the store in it cannot).
    """
    paths = StatePaths(state_dir)
    cache = paths.cache
    async with AsyncExitStack() as stack:
        if ephemeral:
            paths, cache = stack.enter_context(_ephemeral(paths))
        node_id = stack.enter_context(hold_state(paths))
        config = settings.spearlet
        log = stack.enter_context(open_system_log(paths.system_log, config.logs))
        run_dir = stack.enter_context(open_run_dir(paths))
        logs = TaskLogDirectory(
            paths.task_logs, max_bytes=config.logs.max_task_log_bytes, warn=log.warning
        )
        tasks = TaskTable(
            logs,
            keep_finished=max(config.tasks.keep_finished, int(ephemeral)),  # its one task's result
            keep_finished_bytes=config.tasks.keep_finished_bytes,
            keep_finished_s=config.tasks.keep_finished_ms / 1000,
        )
        lasting = not ephemeral and check_store(plugins, settings, paths, log)
        durable = not ephemeral and tasks_are_durable(plugins, config)
        secrets = Secrets(config.secrets, warn=log.warning)
        stack.enter_context(struck_out(log, secrets))
        background = await stack.enter_async_context(open_background())
        maker = ContextMaker(
            node_id=node_id,
            plugins_dir=paths.plugins,
            cache_dir=cache,
            run_dir=run_dir,
            spearlet=config,
            report=lambda artifact, message: artifacts.report(artifact, message),
            ephemeral=ephemeral,
        )
        services = Services(plugins, settings, maker, background=background, log=log)
        objects = await stack.enter_async_context(
            open_task_objects(services.object_store, config, log=log)
        )
        tasks.attach(objects)
        hostcalls = NodeHostcalls(
            services, plugins, tasks, log=log, secrets=secrets, objects=objects
        )
        services.attach(hostcalls, NodeChannels(services, plugins, node_id=node_id, log=log))
        kept = await open_kept_state(services, paths, lasting=lasting, node_id=node_id, log=log)
        if kept.node_id != node_id:
            node_id = kept.node_id
            services.identify(node_id)
            services.attach(hostcalls, NodeChannels(services, plugins, node_id=node_id, log=log))
        artifacts = ArtifactStore(
            paths.artifacts,
            warn=log.warning,
            config=config.artifacts,
            names=kept.names,
            sweep=kept.complete,
        )
        journal = None
        if kept.store is not None and durable:
            journal = await stack.enter_async_context(
                open_journal(kept.store, services.object_store, log, hold=objects.hold)
            )
        tracing = await stack.enter_async_context(open_tracing(plugins, services.tracer, log))
        executor = await stack.enter_async_context(
            open_executor(
                services,
                artifacts,
                tasks,
                config,
                node_id=node_id,
                log=log,
                secrets=secrets,
                objects=None if ephemeral else objects,
            )
        )
        deployer = Deployer(
            artifacts, executor, plugins=plugins, services=services, secrets=secrets, log=log
        )
        invocations = Invocations(
            services,
            artifacts=artifacts,
            tasks=tasks,
            executor=executor,
            config=config,
            tracing=tracing,
            journal=journal,
            objects=objects,
        )
        local = LocalNode(
            NodeIdentity(node_id=node_id, state_dir=paths.root, started_at=time.time()),
            plugins,
            services,
            invocations=invocations,
            tasks=tasks,
            logs=logs,
            executor=executor,
            deployer=deployer,
            config=config,
            objects=objects,
        )

        def apply(changed: SpearletConfig) -> None:
            log.setLevel(changed.logs.level.upper())
            secrets.configure(changed.secrets)
            local.reconfigure(changed)

        backups = NodeBackups(
            paths=paths,
            node_id=node_id,
            services=services,
            code=artifacts.code,
            hold=objects.hold,
        )
        local.attach(
            Reloader(settings, plugins, apply=apply, log=log), None if ephemeral else backups
        )
        hostcalls.attach(lambda task: TaskCalls(task, local, tasks, executor, objects))
        if journal is not None:
            restorer = Restorer(
                journal, tasks, executor, artifacts, logs=logs, log=log, tracing=tracing
            )
            await restorer.restore()
            background.start_soon(restorer.sweep)
            background.start_soon(tasks.keep_tidy)
        logs.prune(config.tasks.keep_finished, known=tasks)
        if not ephemeral and objects_last(plugins, config):
            objects.sweep(tasks)
        urls = []
        if serve:
            for owned in plugins.front_doors.values():
                context = FrontDoorContext(
                    plugin=services.context(owned.plugin_name), node=local, node_dir=paths.root
                )
                door = owned.spec.open(
                    context, settings.plugin_config(owned.plugin_name, owned.spec.config_cls)
                )
                if url := await stack.enter_async_context(door):
                    urls.append(url)
        node = Node(
            api=local,
            urls=tuple(urls),
            local=local,
            executor=executor,
        )
        if not ephemeral:
            deployer.keep_warm()
        log.info("node %s is ready: %s", node_id, ", ".join(urls) or "no front door")
        yield node
        log.info("node %s is stopping", node_id)
        await node.drain()


async def serve_node(
    settings: NodeSettings,
    plugins: Plugins,
    *,
    state_dir: Path,
    ready: Callable[[Node], None],
) -> None:
    """Run a node until SIGTERM, SIGINT or SIGHUP; a second signal cuts the grace period short.

    A SIGHUP that whoever started us has had ignored (``nohup``) stays ignored.

    :param ready: called once when the node takes work.
    """
    wanted = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    with trio.open_signal_receiver(*wanted) as signals:
        async with trio.open_nursery() as nursery:
            async with open_node(settings, plugins, state_dir=state_dir) as node:
                ready(node)
                number = await anext(signals)
                logging.getLogger("spear").info("%s: stopping", signal.Signals(number).name)
                nursery.start_soon(_hurry_on_signal, signals, node)
            nursery.cancel_scope.cancel()


async def _hurry_on_signal(signals: AsyncIterator[int], node: Node) -> None:
    async for _ in signals:
        node.hurry()
        return
