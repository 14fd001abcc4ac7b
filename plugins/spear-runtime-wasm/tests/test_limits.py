"""What a guest may use, and what happens when it wants more."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from spear_core.api import ExecutionStatus, IsolationLevel, Limits
from spear_core.errors import (
    InstanceError,
    IsolationUnavailableError,
    UnsupportedArtifactError,
)
from spear_runtime_wasm._config import WasmConfig
from spear_runtime_wasm._runtime import open_wasm_runtime

MIB = 1 << 20
GROW = """(module (memory (export "memory") 1)
  (func (export "_start") (loop $more
    (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then {end}))
    (br $more))))"""
LOOP = '(module (func (export "_start") (loop (br 0))))'
SLEEPER = """(module (import "spear" "sleep_ms" (func $sleep (param i32)))
  (import "spear" "log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "zzz")
  (func (export "_start")
    (drop (call $log (i32.const 2) (i32.const 0) (i32.const 3)))
    (call $sleep (i32.const 600000))))"""


async def test_growing_beyond_the_limit_is_refused_and_a_trap_after_it_is_out_of_memory(
    guests: Any,
) -> None:
    response = await guests.run(GROW.format(end="unreachable"), limits=Limits(memory_bytes=4 * MIB))
    assert response.error.code == "resource_exhausted"
    assert response.error.kind == "out_of_memory"
    assert f"its limit of {4 * MIB}" in response.error.message
    assert response.usage.peak_memory_bytes == 4 * MIB


async def test_a_guest_that_copes_with_the_refusal_completes(guests: Any) -> None:
    response = await guests.run(GROW.format(end="return"), limits=Limits(memory_bytes=2 * MIB))
    assert response.status is ExecutionStatus.COMPLETED
    assert response.usage.peak_memory_bytes == 2 * MIB


async def test_the_default_limit_is_the_nodes(guests: Any) -> None:
    response = await guests.run(GROW.format(end="return"))
    assert response.usage.peak_memory_bytes == WasmConfig().memory_bytes


async def test_a_module_that_starts_above_its_limit(guests: Any) -> None:
    response = await guests.run(
        '(module (memory (export "memory") 64) (func (export "_start")))',
        limits=Limits(memory_bytes=MIB),
    )
    assert response.error.code == "resource_exhausted"
    assert f"its limit of {MIB} bytes" in response.error.message


async def test_an_artifact_may_not_ask_for_more_than_the_node_allows(
    runtime: Any, make_artifact: Any
) -> None:
    artifact = make_artifact(LOOP, limits=Limits(memory_bytes=1 << 40))
    with pytest.raises(UnsupportedArtifactError, match="max_memory_bytes"):
        await runtime.prepare(artifact)


async def test_isolation_beyond_a_wasm_guests_is_refused(runtime: Any, make_artifact: Any) -> None:
    with pytest.raises(IsolationUnavailableError, match="CGROUP"):
        await runtime.prepare(make_artifact(LOOP, required_isolation=IsolationLevel.CGROUP))


async def test_tables_cannot_grow_without_end(guests: Any) -> None:
    response = await guests.run(
        """(module (table $t 1 funcref) (func (export "_start")
          (if (i32.ne (table.grow $t (ref.null func) (i32.const 100001)) (i32.const -1))
            (then unreachable))))"""
    )
    assert response.status is ExecutionStatus.COMPLETED


async def test_processor_time(guests: Any) -> None:
    with trio.fail_after(60):
        response = await guests.run(LOOP, limits=Limits(cpu_seconds=0.05))
    assert response.error.code == "resource_exhausted"
    assert response.error.kind == "cpu_limit"
    assert 0.05 <= response.usage.cpu_seconds < 60


async def test_a_function_with_too_much_output(guests: Any) -> None:
    response = await guests.run(
        """(module (memory (export "memory") 1)
          (func (export "spear_alloc") (param i32) (result i32) (i32.const 16))
          (func (export "handle") (param i32 i32) (result i64) (i64.const 1001)))""",
        limits=Limits(output_bytes=1000),
    )
    assert response.error.code == "resource_exhausted"
    assert response.error.kind == "output_limit"
    assert "more than 1000 bytes" in response.error.message


async def test_output_write_beyond_the_limit_is_e2big_and_writes_nothing(guests: Any) -> None:
    response = await guests.run(
        """(module (import "spear" "output_write" (func $out (param i32 i32) (result i32)))
          (memory (export "memory") 1) (data (i32.const 0) "0123456789")
          (func (export "_start")
            (if (i32.ne (call $out (i32.const 0) (i32.const 8)) (i32.const 0)) (then unreachable))
            (if (i32.ne (call $out (i32.const 0) (i32.const 8)) (i32.const -7))
              (then unreachable))))""",
        limits=Limits(output_bytes=10),
    )
    assert response.payload == b"01234567"


async def test_a_flood_on_stdout_is_stopped(guests: Any) -> None:
    code = """(module
      (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 2) (data (i32.const 0) "\\08\\00\\00\\00\\00\\00\\01\\00")
      (func (export "_start") (loop
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 66000)))
        (br 0))))"""
    with trio.fail_after(60):
        response = await guests.run(code, limits=Limits(output_bytes=MIB))
    assert response.error.kind == "output_limit"
    assert response.payload == b""


async def test_a_full_pool_is_resource_exhausted_and_recovers(
    context: Any, make_artifact: Any, guests: Any, log: Any
) -> None:
    async with open_wasm_runtime(context, WasmConfig(max_live_instances=3)) as small:
        guests.runtime = small
        await small.prepare(make_artifact(SLEEPER))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(guests.run, SLEEPER)
            with trio.fail_after(60):
                while len(log.lines) < 3:  # noqa: ASYNC110 - the log is no channel
                    await trio.sleep(0.01)
            with pytest.raises(InstanceError, match="max_live_instances") as caught:
                await guests.run(SLEEPER)
            assert caught.value.code == "resource_exhausted"
            assert caught.value.retryable
            nursery.cancel_scope.cancel()
        response = await guests.run('(module (func (export "_start")))')
        assert response.status is ExecutionStatus.COMPLETED


async def test_what_a_guest_puts_into_its_table_is_gone_for_the_next(guests: Any) -> None:
    """Also in the part of a table's slot that is cleared and not given back, and beyond it."""
    module = """(module (memory (export "memory") 1) (table $t 10000 funcref)
      (elem declare func $f) (func $f)
      (func $dirty (param i32) (result i32) (local $was i32)
        (local.set $was (i32.eqz (ref.is_null (table.get $t (local.get 0)))))
        (table.set $t (local.get 0) (ref.func $f))
        (local.get $was))
      (func (export "spear_alloc") (param i32) (result i32) (i32.const 1024))
      (func (export "handle") (param i32 i32) (result i64)
        (i32.store8 (i32.const 0) (call $dirty (i32.const 7)))
        (i32.store8 (i32.const 1) (call $dirty (i32.const 9999)))
        (i64.const 2)))"""
    for _ in range(5):
        response = await guests.run(module, b"x")
        assert response.error is None, response.error
        assert response.payload == b"\0\0"
