"""Every way a guest can break, and that the message says which and where."""

from __future__ import annotations

from typing import Any

import pytest

from spear_core.api import ExecutionStatus

TRAPS = {
    "unreachable": ("unreachable", "unreachable code executed"),
    "memory_out_of_bounds": (
        "(drop (i32.load (i32.const 70000)))",
        "out of bounds memory access",
    ),
    "integer_division_by_zero": (
        "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
        "integer divide by zero",
    ),
    "integer_overflow": (
        "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))",
        "integer overflow",
    ),
    "bad_conversion_to_integer": (
        "(drop (i32.trunc_f32_s (f32.const nan)))",
        "invalid conversion to integer",
    ),
    "indirect_call_to_null": (
        "(call_indirect (type $none) (i32.const 1))",
        "indirect call to a null table entry",
    ),
    "bad_signature": (
        "(call_indirect (type $other) (i64.const 0) (i32.const 0))",
        "indirect call with the wrong signature",
    ),
    "table_out_of_bounds": (
        "(call_indirect (type $none) (i32.const 99))",
        "out of bounds table access",
    ),
    "stack_overflow": ("(call $broken)", "call stack exhausted"),
}


def module(body: str) -> str:
    return f"""(module
      (memory (export "memory") 1)
      (type $none (func)) (type $other (func (param i64)))
      (table 4 funcref) (elem (i32.const 0) $fine)
      (func $fine)
      (func $broken {body})
      (func (export "_start") (call $broken)))"""


@pytest.mark.parametrize("kind", TRAPS)
async def test_a_trap_says_which_and_where(guests: Any, kind: str) -> None:
    body, text = TRAPS[kind]
    response = await guests.run(module(body))
    assert response.status is ExecutionStatus.FAILED
    error = response.error
    assert error.kind == kind
    assert error.code == "unknown"
    assert error.message.startswith(f"trap: {text} in broken, at offset 0x")
    assert error.details["trap"] == kind
    assert error.details["function"] == "broken"
    assert int(error.details["offset"], 16) > 0


async def test_a_module_without_names_tells_the_function_number(guests: Any) -> None:
    response = await guests.run('(module (func) (func (export "_start") unreachable))')
    assert "in function 1, at offset" in response.error.message


async def test_a_backtrace_names_the_callers(guests: Any) -> None:
    response = await guests.run(
        """(module (func $inner unreachable) (func $outer (call $inner))
           (func $start (export "_start") (call $outer)))"""
    )
    assert response.error.details["backtrace"] == "inner < outer < start"


async def test_a_trap_in_the_start_function_is_the_guests_failure(guests: Any) -> None:
    response = await guests.run(
        '(module (func $boot unreachable) (start $boot) (func (export "_start")))'
    )
    assert response.error.kind == "unreachable"
    assert response.error.details["function"] == "boot"


async def test_output_before_a_trap_is_not_a_result(guests: Any) -> None:
    response = await guests.run(
        """(module (import "spear" "output_write" (func $out (param i32 i32) (result i32)))
           (memory (export "memory") 1) (data (i32.const 0) "half")
           (func (export "_start") (drop (call $out (i32.const 0) (i32.const 4))) unreachable))"""
    )
    assert response.payload == b""
    assert response.status is ExecutionStatus.FAILED


async def test_an_instance_goes_on_after_a_trap(guests: Any) -> None:
    """A reused one too: with a new store, so nothing of the broken one is left."""
    code = """(module (memory (export "memory") 1) (global $n (mut i32) (i32.const 0))
      (func (export "spear_alloc") (param i32) (result i32) (i32.const 16))
      (func (export "handle") (param i32 i32) (result i64)
        (global.set $n (i32.add (global.get $n) (i32.const 1)))
        (if (i32.eqz (local.get 1)) (then unreachable))
        (i32.store8 (i32.const 0) (i32.add (i32.const 48) (global.get $n)))
        (i64.const 1)))"""
    async with guests.open(code, reuse=True) as instance:
        answers = [await instance.execute(guests.request(text)) for text in (b"x", b"x", b"", b"x")]
    assert [answer.payload for answer in answers] == [b"1", b"2", b"", b"1"]
    assert answers[2].error.kind == "unreachable"
