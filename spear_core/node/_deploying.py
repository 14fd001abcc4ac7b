"""From an upload to a version that is ready to run, and what an operator does with versions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from logging import Logger
from pathlib import Path

import attrs
import trio

from spear_core._requirements import check_requirement
from spear_core.api import (
    ArtifactDetails,
    ArtifactInfo,
    ArtifactState,
    ArtifactUpload,
    Capability,
    RuntimeSpec,
)
from spear_core.errors import (
    InvalidRequestError,
    RuntimeNotFoundError,
    SpearError,
    UnsupportedArtifactError,
)
from spear_core.node._artifacts import ArtifactStore
from spear_core.node._code import Staged
from spear_core.node._executor import Executor
from spear_core.node._secrets import Secrets
from spear_core.node._services import Services
from spear_core.plugins import Plugins, suggest_distribution

__all__ = ["Deployer"]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_TIMEOUT_S = 1e9


class Deployer:
    """Makes, lists and removes versions of artifacts on this node."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        executor: Executor,
        *,
        plugins: Plugins,
        services: Services,
        secrets: Secrets,
        log: Logger,
    ) -> None:
        self._artifacts = artifacts
        self._executor = executor
        self._plugins = plugins
        self._services = services
        self._secrets = secrets
        self._log = log
        self._changing = trio.Lock()

    async def deploy(self, upload: ArtifactUpload) -> ArtifactInfo:
        """See :meth:`NodeApi.deploy`."""
        _check_settings(upload)
        self._executor.check_room_for(upload.name, upload.resources)
        self._secrets.check(upload.name, upload.secrets)
        self._artifacts.check_dependencies(upload.name, upload.dependencies)
        staged = await self._artifacts.stage(upload)
        try:
            spec, shape = self._recognise(upload, staged)
            reuse = upload.reuse if upload.reuse is not None else shape in spec.reusable_shapes
            candidate, exists = self._artifacts.candidate(
                upload, staged, runtime=spec.name, shape=shape, reuse=reuse
            )
            if not exists:
                runtime = await self._services.runtime(spec.name)
                with self._artifacts.preparing(upload.name, candidate) as artifact:
                    await runtime.prepare(artifact)
                # Somebody else may have deployed under this name, or deleted one, meanwhile.
                self._artifacts.check_dependencies(upload.name, upload.dependencies)
                candidate, exists = self._artifacts.candidate(
                    upload, staged, runtime=spec.name, shape=shape, reuse=reuse
                )
            if exists:
                return self._artifacts.info(upload.name, candidate.version)
            info = await self._artifacts.commit(upload.name, candidate)
            self.keep_warm()
            return info
        finally:
            self._artifacts.code.unstage(staged)

    def _recognise(self, upload: ArtifactUpload, staged: Staged) -> tuple[RuntimeSpec[object], str]:
        """The runtime and the shape for an upload."""
        specs = self._services.runtime_specs()
        path = Path(upload.filename)
        if upload.runtime:
            if upload.runtime not in specs:
                what = f"there is no runtime {upload.runtime!r}"
                raise RuntimeNotFoundError(what + self._remedy(upload.runtime))
            specs = {upload.runtime: specs[upload.runtime]}
        for spec in specs.values():
            if (shape := spec.recognise(path, staged.head, upload.entry)) is not None:
                if upload.requirements and Capability.REQUIREMENTS not in spec.capabilities:
                    raise UnsupportedArtifactError(
                        f"{upload.name} has Python requirements, and the runtime {spec.name!r}, "
                        f"which runs {upload.filename!r}, installs none"
                    )
                if upload.concurrency > 1:
                    _check_concurrency(upload, spec, shape)
                return spec, shape
        if upload.runtime:
            raise UnsupportedArtifactError(
                f"the runtime {upload.runtime!r} does not run files like {upload.filename!r}"
            )
        what = "" if staged.head else ", which is empty"
        raise UnsupportedArtifactError(
            f"no installed runtime runs file {upload.filename!r}{what}{self._remedy(path)}"
        )

    def _remedy(self, wanted: str | Path) -> str:
        """What to do when no runtime is called like this, or takes such a file."""
        hint = suggest_distribution(wanted)
        ours = [p for p in self._plugins.plugins if hint and p.distribution == hint]
        if hint and not ours:
            return f"; `pip install {hint}` provides one"
        for plugin in ours:
            if plugin.state != "loaded":
                return f"; the plugin {plugin.name!r} is {plugin.state}: {plugin.reason}"
        known = ", ".join(self._services.runtime_specs()) or "none"
        return f" (runtimes: {known}); `spear run --help` says what can be run"

    def list(self) -> Sequence[ArtifactInfo]:
        """See :meth:`NodeApi.list_artifacts`."""
        live = self._executor.deployments.instances_of
        return [
            attrs.evolve(info, in_use=info.in_use + live(info.name, info.version))
            if info.state is not ArtifactState.PREPARING
            else info
            for info in self._artifacts.all()
        ]

    def describe(self, ref: str) -> ArtifactDetails:
        """See :meth:`NodeApi.get_artifact`."""
        details = self._artifacts.details(ref)
        info = details.info
        live = self._executor.deployments.instances_of(info.name, info.version)
        return attrs.evolve(details, info=attrs.evolve(info, in_use=info.in_use + live))

    async def set_latest(self, name: str, version: int) -> ArtifactInfo:
        """See :meth:`NodeApi.set_latest`."""
        async with self._changing:
            info = await self._artifacts.set_latest(name, version)
            self.keep_warm()
            return info

    async def set_state(self, name: str, version: int, state: ArtifactState) -> ArtifactInfo:
        """See :meth:`NodeApi.set_artifact_state`."""
        async with self._changing:
            info = await self._artifacts.set_state(name, version, state)
            disabled = state is ArtifactState.DISABLED
            self._executor.deployments.set_disabled(name, version, disabled)
            self.keep_warm()
            return info

    async def delete(self, name: str, version: int | None) -> int:
        """See :meth:`NodeApi.delete_artifact`."""
        async with self._changing:
            wanted = self._artifacts.deletable(name, version)
            with self._artifacts.leaving(wanted):
                self.keep_warm()
                for artifact in wanted:
                    await self._executor.undeploy(artifact)
                    await self._artifacts.delete(artifact)
            self.keep_warm()
            for runtime in sorted({artifact.runtime for artifact in wanted}):
                await self._tidy(runtime)
        return len(wanted)

    def keep_warm(self) -> None:
        """Have ``min_instances`` kept of what callers mean by the names alone."""
        self._executor.deployments.keep_warm(self._artifacts.latest())

    async def _tidy(self, name: str) -> None:
        """Let a runtime forget what it keeps for artifacts that are no more."""
        if not self._services.is_open("runtime", name):
            return
        try:
            runtime = await self._services.runtime(name)
            await runtime.retain(self._artifacts.of_runtime(name))
        except SpearError as error:  # the versions are gone all the same
            self._log.warning("runtime %s: cannot tidy up: %s", name, error)


def _check_settings(upload: ArtifactUpload) -> None:
    if upload.timeout_s is not None and not 0 < upload.timeout_s <= _LONGEST_TIMEOUT_S:
        raise InvalidRequestError(
            f"timeout_s must be a positive number of at most {_LONGEST_TIMEOUT_S:g}, "
            f"not {upload.timeout_s}"
        )
    for name, value in upload.env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidRequestError(f"{name!r} cannot be an environment variable")
    for name in upload.secrets:
        if not _VARIABLE.fullmatch(name):
            raise InvalidRequestError(
                f"a secret cannot be the environment variable {name!r}: use letters, digits, '_'"
            )
        if name in upload.env:
            raise InvalidRequestError(f"{name} is both a variable in env and a secret")
    for requirement in upload.requirements:
        try:
            check_requirement(requirement)
        except ValueError as error:
            raise InvalidRequestError(f"the requirement {requirement!r}: {error}") from error


def _check_concurrency(upload: ArtifactUpload, spec: RuntimeSpec[object], shape: str) -> None:
    """Refuse several executions on one instance where there can't be."""
    asked = f"{upload.name} asks for a concurrency of {upload.concurrency}"
    if Capability.CONCURRENCY not in spec.capabilities:
        raise UnsupportedArtifactError(
            f"{asked}, and an instance of the runtime {spec.name!r} takes one execution at a time"
        )
    reuse = upload.reuse if upload.reuse is not None else shape in spec.reusable_shapes
    if not reuse or shape not in spec.reusable_shapes:
        raise UnsupportedArtifactError(
            f"{asked}, and each execution of a {shape} has an instance of its own"
        )
