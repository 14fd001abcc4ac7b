"""Artifacts that run here: their runtimes, ready, and their instances."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from logging import Logger
from typing import Any, Protocol

import attrs
import trio

from spear_core.api import (
    Artifact,
    ArtifactState,
    Capability,
    Instance,
    InstanceInfo,
    InstanceSpec,
    InstanceState,
    PoolConfig,
    Runtime,
    RuntimeInstanceId,
    RuntimeSpec,
)
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._background import Background
from spear_core.node._failures import as_spear_error
from spear_core.node._pool import InstancePool
from spear_core.node._pooled_instance import PooledInstance, describe_instance
from spear_core.node._secrets import Secrets
from spear_core.plugins import Owned

__all__ = ["Deployment", "Deployments", "RuntimeSource"]


class RuntimeSource(Protocol):
    """Where the executor gets runtimes."""

    async def runtime(self, name: str) -> Runtime:
        """The open runtime of this name. :raises RuntimeFault: it cannot be had."""

    def current_runtime(self, name: str) -> Runtime | None:
        """The runtime of this name, if it is open."""

    def declared_runtime(self, name: str) -> Owned[RuntimeSpec[Any]]:
        """Its declaration. :raises RuntimeNotFoundError: no plugin has it."""


@attrs.define(eq=False)
class Deployment:
    """An artifact that runs here: its runtime, ready, and its instances."""

    artifact: Artifact
    runtime: Runtime
    pool: InstancePool
    prompt: bool
    """Its runtime is ``Capability.PROMPT``."""


_DISABLED = "its artifact is disabled"
_Key = tuple[str, int]
_Single = tuple[InstanceSpec, Instance, float]
"""And since when, on the wall clock: a record that is made for each execution is a small one."""


class Deployments:
    """Gets artifacts ready, keeps them warm, and ends their instances."""

    def __init__(
        self,
        runtimes: RuntimeSource,
        artifacts: ArtifactStore,
        config: PoolConfig,
        *,
        background: Background,
        log: Logger,
        secrets: Secrets,
    ) -> None:
        self._runtimes = runtimes
        self._artifacts = artifacts
        self._config = config
        self._background = background
        self._log = log
        self._secrets = secrets
        self._deployments: dict[_Key, Deployment] = {}
        self._preparing: dict[_Key, trio.Lock] = {}
        self._warm: frozenset[_Key] = frozenset()
        self._single_use: dict[str, _Single] = {}
        self._numbers = itertools.count(1)

    def most_executions(self, artifact: Artifact) -> float:
        """How many executions of an artifact could have an instance at once."""
        if not artifact.reuse:
            return math.inf
        spec = self._runtimes.declared_runtime(artifact.runtime).spec
        each = artifact.concurrency if Capability.CONCURRENCY in spec.capabilities else 1
        return (artifact.pool.max_instances or self._config.max_instances) * each

    async def get(self, artifact: Artifact) -> Deployment:
        """An artifact, ready to run: got so once in the life of its runtime.

        :raises ArtifactError: its code is corrupt or refused. :raises RuntimeFault: no runtime.
        """
        deployment = self._deployments.get((artifact.name, artifact.version))
        if deployment is None or not self._is_current(deployment):
            deployment = await self._prepare(artifact)
        return deployment

    def _is_current(self, deployment: Deployment) -> bool:
        """Whether its runtime still is the one that is open: a broken one is opened anew."""
        name = deployment.artifact.runtime
        return self._runtimes.current_runtime(name) is deployment.runtime

    async def _prepare(self, artifact: Artifact) -> Deployment:
        key = (artifact.name, artifact.version)
        async with self._preparing.setdefault(key, trio.Lock()):
            stale = self._deployments.get(key)
            if stale is not None and not self._is_current(stale):
                del self._deployments[key]
                stale.pool.close("its runtime broke")
            if key not in self._deployments:
                runtime = await self._runtimes.runtime(artifact.runtime)
                await self._artifacts.verify(artifact)
                await runtime.prepare(artifact)
                pool = self._new_pool(artifact, runtime)
                self._deployments[key] = Deployment(
                    artifact=artifact,
                    runtime=runtime,
                    pool=pool,
                    prompt=self._can(artifact, Capability.PROMPT),
                )
                pool.keep_warm(key in self._warm)
                if self._artifacts.info(*key).state is ArtifactState.DISABLED:
                    pool.wind_down(_DISABLED)  # it is for what was queued before
        return self._deployments[key]

    def _new_pool(self, artifact: Artifact, runtime: Runtime) -> InstancePool:
        capable = self._can(artifact, Capability.CONCURRENCY)
        return InstancePool(
            artifact,
            runtime,
            self._config,
            background=self._background,
            new_id=lambda: self._new_id(artifact.runtime),
            log=self._log,
            make_spec=self._secrets.instance_spec,
            concurrency=artifact.concurrency if capable else 1,
        )

    def _can(self, artifact: Artifact, capability: Capability) -> bool:
        runtime = self._runtimes.declared_runtime(artifact.runtime).spec
        return capability in runtime.capabilities

    def is_prompt(self, artifact: Artifact) -> bool:
        """Whether it is ready to run, and its runtime ``Capability.PROMPT``."""
        deployment = self._deployments.get((artifact.name, artifact.version))
        return deployment is not None and deployment.prompt and self._is_current(deployment)

    def single_use(self, artifact: Artifact) -> InstanceSpec:
        """What to ask a runtime for, for one execution only.

        :raises SecretNotFoundError: one is not defined, or has no value now.
        """
        return self._secrets.instance_spec(self._new_id(artifact.runtime), artifact)

    def show(self, spec: InstanceSpec, instance: Instance) -> None:
        """List an instance that serves one execution only, until :meth:`hide`."""
        self._single_use[spec.id.instance_id] = (spec, instance, time.time())

    def hide(self, spec: InstanceSpec) -> None:
        """It has served."""
        del self._single_use[spec.id.instance_id]

    def keep_warm(self, artifacts: Sequence[Artifact]) -> None:
        """Keep ``min_instances`` of these artifacts from now on, and of no others."""
        wanted = {(a.name, a.version): a for a in artifacts if a.reuse}
        self._warm = frozenset(wanted)
        for key, deployment in self._deployments.items():
            deployment.pool.keep_warm(key in wanted)
        for key, artifact in wanted.items():
            least = artifact.pool.min_instances
            if key not in self._deployments and (
                self._config.min_instances if least is None else least
            ):
                self._background.start_soon(self._warm_up, artifact)

    async def _warm_up(self, artifact: Artifact) -> None:
        """Get an artifact ready before somebody asks for it."""
        try:
            await self._prepare(artifact)
            if (artifact.name, artifact.version) not in self._warm:  # it went meanwhile
                await self.undeploy(artifact)
        except Exception as raised:  # barrier: one artifact
            error = as_spear_error(raised, f"warming up {artifact.ref}", self._log)
            self._log.warning("%s is not kept warm: %s", artifact.ref, error)

    def configure(self, config: PoolConfig) -> None:
        """Take new limits."""
        self._config = config
        for deployment in self._deployments.values():
            deployment.pool.configure(config)

    def set_disabled(self, name: str, version: int, disabled: bool) -> None:
        """Have the instances of a version that takes no new tasks end when nobody needs them."""
        if deployment := self._deployments.get((name, version)):
            deployment.pool.wind_down(_DISABLED if disabled else "")

    async def undeploy(self, artifact: Artifact) -> None:
        """End the idle instances of an artifact that is about to be deleted."""
        key = (artifact.name, artifact.version)
        self._preparing.pop(key, None)
        if deployment := self._deployments.pop(key, None):
            deployment.pool.close("its artifact is deleted")
            await deployment.pool.wait_empty()

    def instances(self) -> list[InstanceInfo]:
        """Every live instance."""
        pooled = [info for d in self._deployments.values() for info in d.pool.describe()]
        return [*pooled, *map(_describe_single, self._single_use.values())]

    def instances_of(self, name: str, version: int) -> int:
        """How many instances of this artifact live in its pool."""
        deployment = self._deployments.get((name, version))
        return len(deployment.pool.live) if deployment else 0

    def instance_count(self) -> int:
        """How many instances live."""
        return sum(len(d.pool.live) for d in self._deployments.values()) + len(self._single_use)

    async def close(self) -> None:
        """End every instance, gracefully, side by side."""
        pools = [deployment.pool for deployment in self._deployments.values()]
        for pool in pools:
            pool.close("the node is shutting down")
        for pool in pools:
            await pool.wait_empty()

    def _new_id(self, runtime: str) -> RuntimeInstanceId:
        return RuntimeInstanceId(runtime_type=runtime, instance_id=f"i-{next(self._numbers)}")


def _describe_single(single: _Single) -> InstanceInfo:
    spec, instance, created_at = single
    return describe_instance(
        PooledInstance(
            spec,
            created_at=created_at,
            instance=instance,
            state=InstanceState.RUNNING,
            executions=1,
            outstanding=1,
        )
    )
