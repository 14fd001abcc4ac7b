"""Modules that are refused, and what the person who made them is told."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from spear_core.errors import InstanceStartError, RuntimeFault, UnsupportedArtifactError
from spear_runtime_wasm._config import WasmConfig
from spear_runtime_wasm._runtime import open_wasm_runtime

START = '(func (export "_start"))'
HEADER = b"\0asm\x01\0\0\0"


async def refusal(runtime: Any, artifact: Any) -> str:
    with pytest.raises(UnsupportedArtifactError) as caught:
        await runtime.prepare(artifact)
    message = str(caught.value)
    assert message.startswith("guest.wat: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (HEADER[:6], ["unexpected end", "offset 0x"]),
        (HEADER + b"\x01\x05\x01\x60", ["unexpected end", "offset 0x"]),
        (HEADER + b"\x99garbage", ["malformed section id", "offset 0x8"]),
        (b"\0asm\x0d\0\x01\0", ["component"]),
        ("(module (func (export", ["guest.wat: line 1, column 16: ", "unexpected token"]),
        ("(module (func (result i32)))", ["type mismatch", "function[0]", "offset 24"]),
        ("hello", ["line 1, column 1: expected `(`"]),
        (b"", ["the file is empty"]),
        (b"\xff\xfe\0bad", ["no WebAssembly", "`\\0asm`"]),
    ],
)
async def test_malformed_modules(
    runtime: Any, make_artifact: Any, code: str | bytes, words: list[str]
) -> None:
    message = await refusal(runtime, make_artifact(code))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            '"spear" "cchat_create" (func (result i32))',
            "it needs host function spear.cchat_create, which this version does not provide",
        ),
        ('"spear" "logg" (func)', "spear.logg, which this version does not provide; did you mean"),
        (
            '"spear" "log" (func (param i64))',
            "it imports spear.log as (i64) -> (), but it is (i32, i32, i32) -> (i32)",
        ),
        ('"spear" "log" (global i32)', "it imports spear.log as global, but it is"),
        ('"env" "x" (func)', "it imports `env.x`; only `spear` and `wasi_snapshot_preview1` are"),
        ('"wasi_snapshot_preview1" "fd_fly" (func)', "wasi_snapshot_preview1::fd_fly"),
        (
            '"wasi_snapshot_preview1" "fd_read" (func)',
            "`wasi_snapshot_preview1::fd_read`: types incompatible: expected",
        ),
    ],
)
async def test_imports_that_cannot_be_met(
    runtime: Any, make_artifact: Any, wanted: str, message: str
) -> None:
    artifact = make_artifact(f"(module (import {wanted}) {START})")
    assert message in await refusal(runtime, artifact)


async def test_modules_that_compile_but_cannot_live_in_the_pool(
    runtime: Any, make_artifact: Any
) -> None:
    many = make_artifact(f"(module {'(table 1 funcref)' * 5} {START})")
    assert "tables" in await refusal(runtime, many)
    large = make_artifact(f"(module (table 1000000 funcref) {START})")
    assert "1000000" in await refusal(runtime, large)


async def test_code_that_is_gone(runtime: Any, make_artifact: Any) -> None:
    artifact = make_artifact(f"(module {START})")
    artifact.path.unlink()
    with pytest.raises(RuntimeFault, match="cannot be read"):
        await runtime.prepare(artifact)


async def test_modules_above_the_size_limit(context: Any, make_artifact: Any) -> None:
    artifact = make_artifact(HEADER + b"\0" * 100)
    async with open_wasm_runtime(context, WasmConfig(max_module_bytes=50)) as runtime:
        assert "108 bytes, and max_module_bytes is 50" in await refusal(runtime, artifact)


async def test_opening_an_instance_of_a_bad_module(guests: Any) -> None:
    with pytest.raises(InstanceStartError, match="malformed section"):
        async with guests.open(HEADER + b"\x99garbage"):
            pass


async def test_a_bad_module_does_not_stay_in_the_way(guests: Any) -> None:
    for _ in range(2):
        with pytest.raises(InstanceStartError):
            async with guests.open(HEADER + b"\x99garbage"):
                pass
    assert (await guests.run(f"(module {START})")).error is None


async def test_a_module_evicted_while_it_is_loaded_is_loaded_again(
    context: Any, guests: Any
) -> None:
    async with open_wasm_runtime(context, WasmConfig(max_loaded_modules=1)) as runtime:
        guests.runtime = runtime

        async def run(number: int) -> None:
            response = await guests.run(f"(module {START} (func $f{number}))")
            assert response.error is None

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(run, number)


async def test_loaded_modules_are_dropped_when_there_are_too_many(
    context: Any, make_artifact: Any, guests: Any
) -> None:
    async with open_wasm_runtime(context, WasmConfig(max_loaded_modules=2)) as runtime:
        guests.runtime = runtime
        codes = [f"(module {START} (func $f{number}))" for number in range(4)]
        async with guests.open(codes[0]) as used:
            for code in codes[1:]:
                await guests.run(code)
            assert (await used.execute(guests.request())).error is None
        assert len(runtime._store._loaded) == 2
        for code in codes:
            assert (await guests.run(code)).error is None
