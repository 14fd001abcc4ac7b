"""A WASM runtime to measure, without a node around it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from spear_core.api import Artifact, ExecutionRequest, InstanceSpec, RuntimeInstanceId
from spear_core.testing import make_context
from spear_runtime_wasm._config import WasmConfig
from spear_runtime_wasm._runtime import WasmRuntime, open_wasm_runtime

ECHO = b"""(module (memory (export "memory") 2) (global $next (mut i32) (i32.const 1024))
  (func (export "spear_alloc") (param i32) (result i32)
    (global.get $next) (global.set $next (i32.add (global.get $next) (local.get 0))))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
      (i64.extend_i32_u (local.get 1)))))"""
LOOP = b'(module (func (export "_start") (loop (br 0))))'
REQUEST = ExecutionRequest(execution_id="e", task_id="t", payload=b"x" * 1024)


@attrs.frozen
class Bench:
    """An open runtime and a place for modules."""

    runtime: WasmRuntime
    directory: Path

    async def prepare(self, code: bytes) -> Artifact:
        """Deploy a module and compile it."""
        digest = hashlib.sha256(code).hexdigest()
        path = self.directory / digest
        path.write_bytes(code)
        artifact = Artifact(
            name="bench",
            version=1,
            digest=digest,
            runtime="wasm",
            shape="wasm",
            path=path,
            filename="bench.wat",
        )
        await self.runtime.prepare(artifact)
        return artifact


def spec_of(artifact: Artifact) -> InstanceSpec:
    name = RuntimeInstanceId(runtime_type="wasm", instance_id="bench")
    return InstanceSpec(id=name, artifact=artifact)


@asynccontextmanager
async def open_bench_runtime() -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        context = make_context(directory, plugin="runtime-wasm")
        async with open_wasm_runtime(context, WasmConfig()) as runtime:
            yield Bench(runtime, directory)
