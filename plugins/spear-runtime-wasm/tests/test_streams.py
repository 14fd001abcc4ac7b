"""Input and output calls of guests that stream."""

from __future__ import annotations

import struct
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import MAX_CHUNK, DuplexStream, ExecutionConfig, ExecutionResponse
from spear_runtime_wasm._config import WasmConfig
from spear_runtime_wasm._runtime import open_wasm_runtime
from spear_runtime_wasm._wasi import _EVENT, _SUBSCRIPTION

IMPORTS = """
  (import "spear" "input_len" (func $len (result i32)))
  (import "spear" "input_read" (func $read (param i32 i32) (result i32)))
  (import "spear" "output_write" (func $write (param i32 i32) (result i32)))
  (import "spear" "context_get" (func $context (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func $tell (param i32)
    (i32.store (i32.const 65000) (local.get 0))
    (drop (call $write (i32.const 65000) (i32.const 4))))
"""
WASI = """
  (import "wasi_snapshot_preview1" "fd_read"
    (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
"""
Stream = DuplexStream[ExecutionResponse]


def start(body: str, imports: str = IMPORTS) -> str:
    return f'(module {imports} (func (export "_start") {body}))'


async def number(stream: Stream) -> int:
    """What `$tell` has told."""
    value: int = struct.unpack("<i", await stream.receive())[0]
    return value


async def finish(stream: Stream) -> ExecutionResponse:
    await stream.send_eof()
    with trio.fail_after(60):
        return await stream.result()


async def test_a_chunk_stays_until_there_is_room_for_it(guests: Any) -> None:
    body = """
      (i32.store (i32.const 0) (i32.const 3))
      (call $tell (call $read (i32.const 8) (i32.const 0)))
      (call $tell (i32.load (i32.const 0)))
      (call $tell (call $len))
      (call $tell (call $read (i32.const 8) (i32.const 0)))
      (drop (call $write (i32.const 8) (i32.load (i32.const 0))))
      (call $tell (call $len))
      (call $tell (call $read (i32.const 8) (i32.const 0)))"""
    async with guests.open(start(body)) as instance, instance.stream(guests.request()) as stream:
        await stream.send(b"")  # not one that a guest could tell from the end
        await stream.send(b"chunk")
        assert [await number(stream) for _ in range(4)] == [-28, 5, 5, 5]
        assert await stream.receive() == b"chunk"
        await stream.send_eof()
        assert [await number(stream) for _ in range(2)] == [0, 0]
        assert (await finish(stream)).error is None


async def test_what_an_output_call_refuses(guests: Any) -> None:
    body = f"""
      (call $tell (call $write (i32.const 0) (i32.const {MAX_CHUNK + 1})))
      (call $tell (call $write (i32.const 262140) (i32.const 5)))
      (i32.store (i32.const 0) (i32.const 100))
      (call $tell (call $read (i32.const 262140) (i32.const 0)))
      (call $tell (call $len))"""
    async with guests.open(start(body)) as instance, instance.stream(guests.request()) as stream:
        await stream.send(b"chunk")
        assert [await number(stream) for _ in range(4)] == [-7, -14, -14, 5]
        assert (await finish(stream)).error is None


async def test_a_guest_can_tell_how_it_is_called(guests: Any) -> None:
    body = """
      (i32.store (i32.const 16) (i32.const 100))
      (drop (call $context (i32.const 0) (i32.const 4) (i32.const 32) (i32.const 16)))
      (drop (call $write (i32.const 32) (i32.load (i32.const 16))))"""
    code = start(body, IMPORTS + '(data (i32.const 0) "mode")')
    async with guests.open(code) as instance:
        async with instance.stream(guests.request()) as stream:
            assert await stream.receive() == b"stream"
            assert (await finish(stream)).error is None
        assert (await instance.execute(guests.request())).payload == b"invoke"


async def test_wasi_reads_as_much_as_it_has_room_for(guests: Any) -> None:
    body = """
      (i32.store (i32.const 0) (i32.const 64))
      (i32.store (i32.const 4) (i32.const 4))
      (i32.store (i32.const 8) (i32.const 68))
      (i32.store (i32.const 12) (i32.const 2))
      (loop $again
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 2) (i32.const 32)))
        (i32.store (i32.const 16) (i32.const 64))
        (i32.store (i32.const 20) (i32.load (i32.const 32)))
        (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 36)))
        (br_if $again (i32.load (i32.const 32))))"""
    code = start(body, WASI)
    async with guests.open(code) as instance, instance.stream(guests.request()) as stream:
        await stream.send(b"0123456789")
        assert [await stream.receive() for _ in range(2)] == [b"012345", b"6789"]
        await stream.send(b"ab")
        assert await stream.receive() == b"ab"
        response = await finish(stream)
        assert response.error is None
        assert response.payload == b""


def polling(*subscriptions: bytes) -> str:
    """Polls once and writes the events, then what it can read."""
    data = "".join(f"\\{byte:02x}" for byte in b"".join(subscriptions))
    size = _EVENT.size
    body = f"""
      (drop (call $poll (i32.const 1024) (i32.const 4096) (i32.const {len(subscriptions)})
        (i32.const 8)))
      (i32.store (i32.const 16) (i32.const 4096))
      (i32.store (i32.const 20) (i32.mul (i32.load (i32.const 8)) (i32.const {size})))
      (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 36)))"""
    return start(body, WASI + f'(data (i32.const 1024) "{data}")')


STDIN = _SUBSCRIPTION.pack(7, 1, 0, 0, 0, 0)
SOON, LATE = (_SUBSCRIPTION.pack(name, 0, 1, at, 0, 0) for name, at in ((8, 10**8), (9, 10**12)))


async def events(stream: Stream) -> list[int]:
    return [event[0] for event in _EVENT.iter_unpack(await stream.receive())]


async def test_a_poll_waits_for_input(guests: Any) -> None:
    code = polling(STDIN, LATE)
    async with guests.open(code) as instance, instance.stream(guests.request()) as stream:
        await trio.sleep(0.2)
        await stream.send(b"x")
        with trio.fail_after(60):
            assert await events(stream) == [7]


async def test_a_poll_ends_by_its_clock_when_no_input_comes(guests: Any) -> None:
    code = polling(STDIN, LATE, SOON)
    async with guests.open(code) as instance, instance.stream(guests.request()) as stream:
        assert await events(stream) == [8]


async def test_a_poll_is_told_of_the_end_and_of_what_is_there(guests: Any) -> None:
    for first in (b"x", b""):
        async with (
            guests.open(polling(STDIN)) as instance,
            instance.stream(guests.request()) as stream,
        ):
            if first:
                await stream.send(first)
            else:
                await stream.send_eof()
            assert await events(stream) == [7]


async def test_a_guest_that_computes_between_chunks(guests: Any) -> None:
    body = """(local $i i64)
      (loop $again
        (drop (call $len))
        (i32.store (i32.const 0) (i32.const 100))
        (if (i32.gt_s (call $read (i32.const 8) (i32.const 0)) (i32.const 0)) (then
          (local.set $i (i64.const 100000000))
          (loop $spin
            (local.set $i (i64.sub (local.get $i) (i64.const 1)))
            (br_if $spin (i64.gt_s (local.get $i) (i64.const 0))))
          (drop (call $write (i32.const 8) (i32.load (i32.const 0))))
          (br $again))))"""
    async with guests.open(start(body)) as instance, instance.stream(guests.request()) as stream:
        for chunk in (b"one", b"two", b"three"):  # each long enough for a worker thread
            await stream.send(chunk)
            with trio.fail_after(60):
                assert await stream.receive() == chunk
        response = await finish(stream)
    assert response.error is None
    assert (response.usage.cpu_seconds or 0) > 0.01


async def test_a_function_guest_has_an_input_limit(context: Any, guests: Any) -> None:
    small = attrs.evolve(context.spearlet_config, execution=ExecutionConfig(max_input_bytes=1000))
    handle = """(module (memory (export "memory") 2)
      (func (export "spear_alloc") (param i32) (result i32) (i32.const 1024))
      (func (export "handle") (param i32 i32) (result i64)
        (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
          (i64.extend_i32_u (local.get 1)))))"""
    limited = attrs.evolve(context, spearlet_config=small)
    async with open_wasm_runtime(limited, WasmConfig()) as runtime:
        guests = attrs.evolve(guests, runtime=runtime)
        async with guests.open(handle) as instance:
            async with instance.stream(guests.request()) as stream:
                for _ in range(10):
                    await stream.send(bytes(100))
                await stream.send_eof()
                assert await stream.receive() == bytes(1000)
                assert (await stream.result()).error is None
            async with instance.stream(guests.request()) as stream:
                await stream.send(bytes(1001))
                error = (await stream.result()).error
    assert error is not None
    assert error.code == "resource_exhausted"
    assert "more than 1000 bytes" in error.message


@pytest.mark.parametrize("entry", ["main", "missing"])
async def test_a_reused_instance_streams_and_executes(guests: Any, entry: str) -> None:
    code = f"""(module {IMPORTS} (func (export "main")
      (i32.store (i32.const 0) (i32.const 100))
      (drop (call $read (i32.const 8) (i32.const 0)))
      (drop (call $write (i32.const 8) (i32.load (i32.const 0))))))"""
    async with guests.open(code, reuse=True) as instance:
        for turn in (b"1", b"2", b"3", b"4"):
            if turn in b"12":
                response = await instance.execute(guests.request(turn, entry=entry))
                assert response.payload == (turn if entry == "main" else b"")
                continue
            async with instance.stream(guests.request(entry=entry)) as stream:
                if entry == "main":
                    await stream.send(turn)
                    assert await stream.receive() == turn
                response = await finish(stream)
                assert (response.error is None) is (entry == "main")
