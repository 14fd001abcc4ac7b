"""Fixtures: a runtime as a node would open it, artifacts from text modules, a log to look at."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest

from spear_core.api import (
    Artifact,
    ExecutionRequest,
    ExecutionResponse,
    Instance,
    InstanceSpec,
    PluginContext,
    RuntimeInstanceId,
)
from spear_core.testing import FakeHostcalls, make_context
from spear_runtime_wasm._config import WasmConfig
from spear_runtime_wasm._runtime import WasmRuntime, open_wasm_runtime


class RecordedLog(FakeHostcalls):
    """What guests logged, as tuples of execution, message, level and source."""

    @property
    def lines(self) -> list[tuple[str, str, str, str]]:
        return [attrs.astuple(entry) for entry in self.entries]


@pytest.fixture
def log() -> RecordedLog:
    return RecordedLog()


@pytest.fixture
def context(tmp_path: Path, log: RecordedLog) -> PluginContext:
    return make_context(tmp_path, plugin="runtime-wasm", hostcalls=log)


@pytest.fixture
async def runtime(context: PluginContext) -> AsyncIterator[WasmRuntime]:
    async with open_wasm_runtime(context, WasmConfig()) as opened:
        yield opened


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., Artifact]:
    def make(code: str | bytes, **fields: Any) -> Artifact:
        data = code.encode() if isinstance(code, str) else code
        digest = hashlib.sha256(data).hexdigest()
        path = tmp_path / f"{digest}.code"
        path.write_bytes(data)
        values: dict[str, Any] = {
            "name": "guest",
            "version": 1,
            "digest": digest,
            "runtime": "wasm",
            "shape": "wasm",
            "path": path,
            "filename": "guest.wat",
        }
        return Artifact(**{**values, **fields})

    return make


@attrs.define
class Guests:
    """Runs modules from start to end."""

    runtime: WasmRuntime
    make_artifact: Callable[..., Artifact]

    async def run(
        self, code: str | bytes, payload: bytes = b"", *, entry: str = "", **fields: Any
    ) -> ExecutionResponse:
        async with self.open(code, **fields) as instance:
            return await instance.execute(self.request(payload, entry=entry))

    def request(self, payload: bytes = b"", **fields: Any) -> ExecutionRequest:
        values: dict[str, Any] = {"execution_id": "e1", "task_id": "t1", "payload": payload}
        return ExecutionRequest(**{**values, **fields})

    def open(self, code: str | bytes, **fields: Any) -> AbstractAsyncContextManager[Instance]:
        secrets = fields.pop("values_of_secrets", None)
        return self.open_artifact(self.make_artifact(code, **fields), secrets=secrets)

    def open_artifact(
        self, artifact: Artifact, *, secrets: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[Instance]:
        name = RuntimeInstanceId(runtime_type="wasm", instance_id="i1")
        spec = InstanceSpec(id=name, artifact=artifact, secrets=secrets or {})
        return self.runtime.open_instance(spec)


@pytest.fixture
async def guests(runtime: WasmRuntime, make_artifact: Callable[..., Artifact]) -> Guests:
    return Guests(runtime, make_artifact)
