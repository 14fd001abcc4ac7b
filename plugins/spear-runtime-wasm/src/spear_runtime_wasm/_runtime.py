"""The runtime `wasm`."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

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
from spear_core.errors import IsolationUnavailableError, UnsupportedArtifactError

from ._config import WasmConfig
from ._ffi import EngineError, library_path, possible_slots
from ._instance import LEVEL, OpenInstance, guest_limits
from ._module import check_artifact
from ._store import ModuleStore, open_module_store

SUPPORTED = ((50, 0, 1), (51, 0, 0))
"""Versions of wasmtime from … to before: the C interface differs between major versions."""


class WasmRuntime(Runtime):
    """Instances in this process, each with its own memory, on one engine."""

    def __init__(self, context: PluginContext, config: WasmConfig, store: ModuleStore) -> None:
        self._context = context
        self._config = config
        self._store = store
        self._max_output = context.spearlet_config.execution.max_output_bytes
        self._found: Fingerprint | None = None

    async def fingerprint(self) -> Fingerprint:
        """Healthy once, healthy for ever: what is loaded in this process stays as it is, and
        finding it takes half a millisecond of the node's thread, for whoever asks for its state."""
        await trio.lowlevel.checkpoint()
        if self._found is not None:
            return self._found
        found = fingerprint(self._config)
        if found.health is Health.HEALTHY:
            self._found = found
        return found

    async def prepare(self, artifact: Artifact) -> None:
        required = artifact.required_isolation
        if required is not None and required > LEVEL:
            raise IsolationUnavailableError(
                f"{artifact.ref} requires isolation {required.name}; a WASM guest has {LEVEL.name}"
            )
        asked = artifact.limits.memory_bytes or 0
        if asked > self._config.max_memory_bytes:
            raise UnsupportedArtifactError(
                f"{artifact.ref} asks for {asked} bytes of memory, and max_memory_bytes is"
                f" {self._config.max_memory_bytes}"
            )
        check_artifact(await self._store.load(artifact), artifact)

    def open_instance(self, spec: InstanceSpec) -> AbstractAsyncContextManager[Instance]:
        artifact, config = spec.artifact, self._config
        return OpenInstance(
            self._store,
            spec,
            context=self._context,
            limits=guest_limits(artifact, config.memory_bytes, config.table_elements),
            max_output=artifact.limits.output_bytes or self._max_output,
        )


@asynccontextmanager
async def open_wasm_runtime(
    context: PluginContext, config: WasmConfig
) -> AsyncIterator[WasmRuntime]:
    """Open the runtime; the engine itself is made when the first module is prepared."""
    async with open_module_store(context, config) as store:
        yield WasmRuntime(context, config, store)


def fingerprint(config: WasmConfig) -> Fingerprint:
    try:
        version = importlib.metadata.version("wasmtime")
        library_path()
    except ImportError as exc:
        return Fingerprint(health=Health.UNDETECTED, message=f"{exc}; pip install wasmtime")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    low, high = SUPPORTED
    if not low <= numbers < high:
        wanted = f">={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
        return Fingerprint(
            health=Health.UNHEALTHY, message=f"wasmtime {version} is installed; needed: {wanted}"
        )
    try:
        slots = possible_slots(config.max_live_instances)
    except EngineError as exc:
        return Fingerprint(health=Health.UNHEALTHY, message=str(exc))
    details = {
        "wasmtime": version,
        "machine": platform.machine(),
        "isolation": LEVEL.name.lower(),
        "live instances": str(slots),
    }
    return Fingerprint(health=Health.HEALTHY, message=f"wasmtime {version}", details=details)
