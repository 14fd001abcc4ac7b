"""The compiler process and the cache of what it made."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from spear_core.errors import UnsupportedArtifactError
from spear_runtime_wasm import _compile
from spear_runtime_wasm._cache import KEY_FILE, MAGIC, ImageCache
from spear_runtime_wasm._config import WasmConfig
from spear_runtime_wasm._runtime import open_wasm_runtime

CODE = '(module (func (export "_start")))'


def bomb(*, loops: int = 1000, variables: int = 100) -> str:
    """Five kilobytes that take half a minute: every variable changes in every one of many loops."""
    changes = "".join(
        f"(local.set {n} (i32.add (local.get {n}) (local.get {(n * 7 + 1) % variables})))"
        for n in range(variables)
    )
    ends = "".join(f"(br_if 0 (local.get {n % variables})))" for n in range(loops))
    kinds = "i32 " * variables
    return f'(module (func (export "_start") (local {kinds}) {"(loop " * loops}{changes}{ends}))'


def giant(size: int = 150_000) -> str:
    """A function whose compilation takes some hundred megabytes."""
    body = "(local.set 0 (i32.add (i32.mul (local.get 0) (local.get 1)) (i32.load (local.get 0))))"
    return f'(module (memory 1) (func (export "_start") (local i32 i32) {body * size}))'


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the modules that went through the compiler."""
    names: list[str] = []
    real = _compile.compile_file

    async def recording(path: Path, name: str, config: WasmConfig) -> bytes:
        names.append(name)
        return await real(path, name, config)

    monkeypatch.setattr("spear_runtime_wasm._store.compile_file", recording)
    return names


async def prepare_again(context: Any, artifact: Any) -> None:
    async with open_wasm_runtime(context, WasmConfig()) as runtime:
        await runtime.prepare(artifact)


async def test_a_module_is_compiled_once_for_overlapping_calls(
    runtime: Any, make_artifact: Any, compiled: list[str]
) -> None:
    artifact = make_artifact(CODE)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(runtime.prepare, artifact)
    await runtime.prepare(artifact)
    assert compiled == ["guest.wat"]


async def test_a_restarted_node_uses_the_cache(
    context: Any, make_artifact: Any, compiled: list[str]
) -> None:
    artifact = make_artifact(CODE)
    await prepare_again(context, artifact)
    await prepare_again(context, artifact)
    assert compiled == ["guest.wat"]
    modes = {path.stat().st_mode & 0o777 for path in context.cache_dir.iterdir()}
    assert modes == {0o600}
    assert context.cache_dir.stat().st_mode & 0o777 == 0o700


async def test_a_compile_bomb_is_stopped(context: Any, make_artifact: Any) -> None:
    artifact = make_artifact(bomb())
    async with open_wasm_runtime(context, WasmConfig(compile_cpu_seconds=1)) as runtime:
        with pytest.raises(UnsupportedArtifactError, match=r"more than 1 s of processor time"):
            await runtime.prepare(artifact)


async def test_nobody_else_notices_a_compilation(
    context: Any, make_artifact: Any, guests: Any
) -> None:
    await guests.runtime.prepare(guests.make_artifact(CODE))
    async with open_wasm_runtime(context, WasmConfig()) as runtime, trio.open_nursery() as nursery:
        prepared = False

        async def prepare() -> None:
            nonlocal prepared
            await runtime.prepare(make_artifact(bomb()))
            prepared = True

        nursery.start_soon(prepare)
        for _ in range(11):
            assert (await guests.run(CODE)).error is None
            await trio.sleep(0.01)
        assert not prepared
        nursery.cancel_scope.cancel()


async def test_a_compiler_out_of_memory_says_so(context: Any, make_artifact: Any) -> None:
    config = WasmConfig(compile_memory_bytes=160 << 20)
    async with open_wasm_runtime(context, config) as runtime:
        with pytest.raises(UnsupportedArtifactError, match="compile_memory_bytes"):
            await runtime.prepare(make_artifact(giant()))


async def test_cancelling_kills_the_compiler(context: Any, make_artifact: Any) -> None:
    artifact = make_artifact(bomb())
    async with open_wasm_runtime(context, WasmConfig()) as runtime:
        with trio.move_on_after(0.4) as scope:
            await runtime.prepare(artifact)
        assert scope.cancelled_caught
    living = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                living.append(child)
    assert not living


async def test_a_corrupt_entry_is_compiled_again(
    context: Any, make_artifact: Any, compiled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    artifact = make_artifact(CODE)
    await prepare_again(context, artifact)
    (entry,) = context.cache_dir.glob("*.aot")
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    for bad in (bytes(data), bytes(data[:20]), b""):
        entry.write_bytes(bad)
        await prepare_again(context, artifact)
        assert "compiling it again" in caplog.text
    assert len(compiled) == 4
    await prepare_again(context, artifact)
    assert len(compiled) == 4, "the good one was written back"


async def test_an_image_of_another_module_or_key_is_not_believed(
    context: Any, make_artifact: Any, compiled: list[str]
) -> None:
    one, two = make_artifact(CODE), make_artifact('(module (func (export "main")))')
    await prepare_again(context, one)
    await prepare_again(context, two)
    first, second = (
        next(iter(context.cache_dir.glob(f"{artifact.digest}*"))) for artifact in (one, two)
    )
    second.write_bytes(first.read_bytes())
    await prepare_again(context, two)
    assert len(compiled) == 3
    (context.cache_dir / KEY_FILE).write_bytes(b"k" * 32)
    await prepare_again(context, one)
    assert len(compiled) == 4


async def test_a_valid_entry_that_is_no_image_is_compiled_again(
    context: Any, make_artifact: Any, compiled: list[str]
) -> None:
    """As after a move to another machine: the signature is right, the engine refuses the code."""
    artifact = make_artifact(CODE)
    await prepare_again(context, artifact)
    (entry,) = context.cache_dir.glob("*.aot")
    async with open_wasm_runtime(context, WasmConfig()) as runtime:
        runtime._store._open_cache().store(artifact.digest, b"not an image")
        assert b"not an image" in entry.read_bytes()
        await runtime.prepare(artifact)
    assert len(compiled) == 2


def make_cache(directory: Path, max_bytes: int = 1 << 20, version: str = "1") -> ImageCache:
    return ImageCache(
        directory, version=version, max_bytes=max_bytes, log=logging.getLogger("test.cache")
    )


def test_a_key_that_others_can_read_is_replaced(tmp_path: Path) -> None:
    make_cache(tmp_path).store("d", b"image")
    key = tmp_path / KEY_FILE
    before = key.read_bytes()
    key.chmod(0o644)
    assert make_cache(tmp_path).load("d") is None
    assert key.read_bytes() != before
    assert key.stat().st_mode & 0o777 == 0o600


def test_another_version_has_other_entries(tmp_path: Path) -> None:
    make_cache(tmp_path).store("d", b"image")
    assert make_cache(tmp_path).load("d") == b"image"
    assert make_cache(tmp_path, version="2").load("d") is None


def test_the_oldest_entries_go_when_the_cache_is_full(tmp_path: Path) -> None:
    size = len(MAGIC) + 32 + 100
    cache = make_cache(tmp_path, max_bytes=2 * size)
    for number, name in enumerate("abc"):
        cache.store(name, name.encode() * 100)
        for path in tmp_path.glob(f"{name}-*"):
            os.utime(path, (number, number))
        if name == "b":
            assert cache.load("a") is not None  # used now, so `b` is the oldest
    assert [cache.load(name) is not None for name in "abc"] == [True, False, True]


def test_a_directory_that_cannot_be_written_costs_only_the_speed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache = make_cache(blocked / "cache")
    cache.store("d", b"image")
    assert cache.load("d") is None
    assert "could not be kept" in caplog.text
