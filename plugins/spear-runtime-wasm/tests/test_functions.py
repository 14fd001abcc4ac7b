"""Function guests, entry points, and instances that are reused."""

from __future__ import annotations

from typing import Any

import pytest

from spear_core.api import ExecutionStatus
from spear_core.errors import InstanceError, UnsupportedArtifactError

ALLOC = '(func (export "spear_alloc") (param i32) (result i32) {body})'
ECHO = f"""(module (memory (export "memory") 2) (global $p (mut i32) (i32.const 1024))
  {ALLOC.format(body="(global.get $p)")}
  (func (export "handle") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
      (i64.extend_i32_u (local.get 1)))))"""
COUNTER = f"""(module (memory (export "memory") 1) (global $n (mut i32) (i32.const 48))
  {ALLOC.format(body="(i32.const 16)")}
  (func $up (global.set $n (i32.add (global.get $n) (i32.const 1))))
  (func (export "_initialize") (global.set $n (i32.const 64)))
  (func (export "handle") (param i32 i32) (result i64)
    (call $up) (i32.store8 (i32.const 0) (global.get $n)) (i64.const 1))
  (func (export "other") (param i32 i32) (result i64)
    (call $up) (i32.store8 (i32.const 0) (global.get $n)) (i64.const 1))
  (func (export "plain") (call $up)))"""


def handler(body: str, *, alloc: str = "(i32.const 16)") -> str:
    return f"""(module (memory (export "memory") 1) {ALLOC.format(body=alloc)}
      (func (export "handle") (param i32 i32) (result i64) {body}))"""


async def test_a_function_gets_its_input_and_gives_its_output(guests: Any) -> None:
    response = await guests.run(ECHO, b"hello")
    assert (response.payload, response.content_type) == (b"hello", "application/octet-stream")


@pytest.mark.parametrize("size", [0, 1, 1024, 100_000])
async def test_sizes(guests: Any, size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    assert (await guests.run(ECHO, payload[:size])).payload == payload[:size]


async def test_a_negative_result_is_an_errno(guests: Any) -> None:
    response = await guests.run(handler("(i64.const -22)"), b"x")
    assert response.error.kind == "errno"
    assert response.error.message == "`handle` returned -22 (EINVAL)"
    assert response.error.details["errno"] == "22"


async def test_a_result_outside_memory(guests: Any) -> None:
    response = await guests.run(handler("(i64.const 0x0000ffff00000010)"), b"x")
    assert response.error.kind == "bad_result"
    assert "16 bytes at 65535, outside its memory of 65536 bytes" in response.error.message


@pytest.mark.parametrize("pointer", ["0", "65530", "-1"])
async def test_no_room_for_the_input(guests: Any, pointer: str) -> None:
    code = handler("(i64.const 0)", alloc=f"(i32.const {pointer})")
    response = await guests.run(code, b"0123456789")
    assert response.error.kind == "bad_result"
    assert "no room for 10 bytes" in response.error.message


async def test_a_fresh_instance_for_each_execution(guests: Any) -> None:
    async with guests.open(COUNTER) as instance:
        answers = [(await instance.execute(guests.request())).payload for _ in range(3)]
    assert answers == [b"A", b"A", b"A"]


async def test_a_reused_instance_keeps_its_state_and_is_initialized_once(guests: Any) -> None:
    async with guests.open(COUNTER, reuse=True) as instance:
        answers = [
            (await instance.execute(guests.request(entry=entry))).payload
            for entry in ("", "other", "plain", "handle")
        ]
        statistics = instance.statistics()
    assert answers == [b"A", b"B", b"", b"D"]
    assert statistics.executions == 4
    assert statistics.memory_bytes == 65536


async def test_reused_instances_do_not_share(guests: Any) -> None:
    async with guests.open(COUNTER, reuse=True) as one, guests.open(COUNTER, reuse=True) as two:
        assert (await one.execute(guests.request())).payload == b"A"
        assert (await two.execute(guests.request())).payload == b"A"


async def test_input_and_output_are_given_back(guests: Any) -> None:
    code = """(module (memory (export "memory") 1) (global $next (mut i32) (i32.const 256))
      (global $live (mut i32) (i32.const 0))
      (func $alloc (export "spear_alloc") (param i32) (result i32)
        (global.set $live (i32.add (global.get $live) (i32.const 1)))
        (global.set $next (i32.add (global.get $next) (i32.const 16))) (global.get $next))
      (func (export "spear_free") (param i32 i32)
        (global.set $live (i32.sub (global.get $live) (i32.const 1))))
      (func (export "handle") (param i32 i32) (result i64) (local $out i32)
        (local.set $out (call $alloc (i32.const 1)))
        (i32.store8 (local.get $out) (i32.add (i32.const 48) (global.get $live)))
        (i64.or (i64.shl (i64.extend_i32_u (local.get $out)) (i64.const 32)) (i64.const 1))))"""
    async with guests.open(code, reuse=True) as instance:
        answers = [(await instance.execute(guests.request(b"x"))).payload for _ in range(3)]
    assert answers == [b"2", b"2", b"2"]


async def test_a_guest_that_answers_in_place_gets_its_memory_back_once(guests: Any) -> None:
    code = """(module (memory (export "memory") 1) (global $freed (mut i32) (i32.const 0))
      (func (export "spear_alloc") (param i32) (result i32) (i32.const 16))
      (func (export "spear_free") (param i32 i32)
        (global.set $freed (i32.add (global.get $freed) (i32.const 1))))
      (func (export "handle") (param i32 i32) (result i64)
        (i32.store8 (local.get 0) (i32.add (i32.const 48) (global.get $freed)))
        (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32)) (i64.const 1))))"""
    async with guests.open(code, reuse=True) as instance:
        answers = [(await instance.execute(guests.request(b"x"))).payload for _ in range(3)]
    assert answers == [b"0", b"1", b"2"]


async def test_start_is_never_entered_twice_even_with_reuse(guests: Any) -> None:
    code = """(module (global $started (mut i32) (i32.const 0)) (func (export "_start")
      (if (global.get $started) (then unreachable)) (global.set $started (i32.const 1))))"""
    async with guests.open(code, reuse=True) as instance:
        for _ in range(2):
            assert (await instance.execute(guests.request())).status is ExecutionStatus.COMPLETED


@pytest.mark.parametrize(
    ("exports", "expected"),
    [
        (("_start", "main", "handle"), b"_start"),
        (("main", "handle"), b"handle"),
        (("main",), b"main"),
    ],
)
async def test_the_default_entry(guests: Any, exports: tuple[str, ...], expected: bytes) -> None:
    code = ['(import "spear" "output_write" (func $out (param i32 i32) (result i32)))']
    for index, name in enumerate(("_start", "main", "handle")):
        code.append(f'(data (i32.const {index * 16}) "{name}")')
        write = f"(drop (call $out (i32.const {index * 16}) (i32.const {len(name)})))"
        kind = "(param i32 i32) (result i64)" if name == "handle" else ""
        end = "(i64.const 0)" if name == "handle" else ""
        if name in exports:
            code.append(f'(func (export "{name}") {kind} {write} {end})')
    code.append(ALLOC.format(body="(i32.const 512)"))
    text = f'(module {code[0]} (memory (export "memory") 1) {" ".join(code[1:])})'
    assert (await guests.run(text)).payload == expected
    named = await guests.run(text, entry="__spear_default_entry__")
    assert named.payload == expected


async def test_an_entry_may_return_something(guests: Any) -> None:
    response = await guests.run('(module (func (export "main") (result i32) (i32.const 7)))')
    assert response.status is ExecutionStatus.COMPLETED


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("absent", "exports no function 'absent'; its functions: main, odd"),
        ("odd", r"'odd' is (i64) -> (); an entry is () -> () or (i32, i32) -> i64"),
        ("memory", "exports no function 'memory'"),
    ],
)
async def test_entries_that_cannot_be_called(guests: Any, entry: str, message: str) -> None:
    code = """(module (memory (export "memory") 1) (func (export "main"))
      (func (export "odd") (param i64)))"""
    response = await guests.run(code, entry=entry)
    assert response.error.code == "invalid_argument"
    assert message in response.error.message


async def test_a_handler_without_an_allocator(guests: Any) -> None:
    code = """(module (memory (export "memory") 1)
      (func (export "handle") (param i32 i32) (result i64) (i64.const 0)))"""
    response = await guests.run(code, b"x")
    assert "`spear_alloc` must be exported" in response.error.message


async def test_a_bad_default_entry_is_told_when_the_artifact_is_prepared(
    runtime: Any, make_artifact: Any
) -> None:
    artifact = make_artifact('(module (func (export "main")))', entry="absent")
    with pytest.raises(UnsupportedArtifactError, match="no function 'absent'"):
        await runtime.prepare(artifact)


async def test_a_closed_instance_executes_nothing(guests: Any) -> None:
    async with guests.open(ECHO) as instance:
        await instance.check_health()
    with pytest.raises(InstanceError):
        await instance.execute(guests.request())
    with pytest.raises(InstanceError):
        await instance.check_health()
