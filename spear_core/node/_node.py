"""Putting a node together, and taking it apart in order."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio

from spear_core.api import FrontDoorContext, NodeApi, RuntimeInfo, SpearletConfig
from spear_core.config import NodeSettings
from spear_core.node._executor import Executor
from spear_core.node._function_calls import TaskCalls
from spear_core.node._ground import Ground, open_ground
from spear_core.node._local_node import LocalNode, NodeIdentity
from spear_core.node._node_backup import NodeBackups
from spear_core.node._open_files import raise_limit
from spear_core.node._parts import Engine, Resources, open_engine, open_resources
from spear_core.node._reloading import Reloader
from spear_core.node._restoring import Restorer
from spear_core.node._stores import objects_last
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
    async with AsyncExitStack() as stack:
        ground = stack.enter_context(
            open_ground(settings, plugins, state_dir=state_dir, ephemeral=ephemeral)
        )
        resources = await stack.enter_async_context(open_resources(ground))
        engine = await stack.enter_async_context(open_engine(ground, resources))
        local = _local_node(ground, resources, engine)
        await _recover(ground, resources, engine)
        urls: Sequence[str] = ()
        if serve:
            urls = await stack.enter_async_context(_open_front_doors(ground, resources, local))
        node = Node(api=local, urls=tuple(urls), local=local, executor=engine.executor)
        if not ephemeral:
            engine.deployer.keep_warm()
        what = ", ".join(urls) or "no front door"
        ground.log.info("node %s is ready: %s", resources.node_id, what)
        yield node
        ground.log.info("node %s is stopping", resources.node_id)
        await node.drain()


def _local_node(ground: Ground, resources: Resources, engine: Engine) -> LocalNode:
    """The node's answers to its callers, and to functions that call others."""
    tasks, objects, executor = resources.tasks, resources.objects, engine.executor
    local = LocalNode(
        NodeIdentity(
            node_id=resources.node_id, state_dir=ground.paths.root, started_at=time.time()
        ),
        ground.plugins,
        resources.services,
        invocations=engine.invocations,
        tasks=tasks,
        logs=resources.logs,
        executor=executor,
        deployer=engine.deployer,
        config=ground.config,
        objects=objects,
    )

    def apply(changed: SpearletConfig) -> None:
        ground.log.setLevel(changed.logs.level.upper())
        ground.secrets.configure(changed.secrets)
        local.reconfigure(changed)

    backups = NodeBackups(
        paths=ground.paths,
        node_id=resources.node_id,
        services=resources.services,
        code=resources.artifacts.code,
        hold=objects.hold,
    )
    local.attach(
        Reloader(ground.settings, ground.plugins, apply=apply, log=ground.log),
        None if ground.ephemeral else backups,
    )
    resources.hostcalls.attach(lambda task: TaskCalls(task, local, tasks, executor, objects))
    return local


async def _recover(ground: Ground, resources: Resources, engine: Engine) -> None:
    """Go on with the tasks of the last time, and remove what it has left of others."""
    tasks, logs, background = resources.tasks, resources.logs, resources.background
    if engine.journal is not None:
        restorer = Restorer(
            engine.journal,
            tasks,
            engine.executor,
            resources.artifacts,
            logs=logs,
            log=ground.log,
            tracing=engine.tracing,
        )
        await restorer.restore()
        background.start_soon(restorer.sweep)
        background.start_soon(tasks.keep_tidy)
    logs.prune(ground.config.tasks.keep_finished, known=tasks)
    if not ground.ephemeral and objects_last(ground.plugins, ground.config):
        resources.objects.sweep(tasks)


@asynccontextmanager
async def _open_front_doors(
    ground: Ground, resources: Resources, local: LocalNode
) -> AsyncIterator[Sequence[str]]:
    """Where clients reach the node, while the block lasts."""
    urls = []
    async with AsyncExitStack() as stack:
        for owned in ground.plugins.front_doors.values():
            context = FrontDoorContext(
                plugin=resources.services.context(owned.plugin_name),
                node=local,
                node_dir=ground.paths.root,
            )
            config = ground.settings.plugin_config(owned.plugin_name, owned.spec.config_cls)
            if url := await stack.enter_async_context(owned.spec.open(context, config)):
                urls.append(url)
        yield urls


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
    raise_limit(logging.getLogger("spear"))
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
