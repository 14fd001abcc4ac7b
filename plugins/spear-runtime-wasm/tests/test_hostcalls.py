"""The `spear` imports, number by number (guest ABI 2, 4 and 17)."""

from __future__ import annotations

import struct
import time
from typing import Any

import attrs
import pytest

from spear_runtime_wasm import _hostcalls

SIGNATURES = {
    "log": "(param i32 i32 i32) (result i32)",
    "time_now_ms": "(result i64)",
    "wall_time_s": "(result i64)",
    "random_i64": "(result i64)",
    "sleep_ms": "(param i32)",
    "input_len": "(result i32)",
    "input_read": "(param i32 i32) (result i32)",
    "input_content_type": "(param i32 i32) (result i32)",
    "output_write": "(param i32 i32) (result i32)",
    "output_content_type": "(param i32 i32) (result i32)",
    "context_get": "(param i32 i32 i32 i32) (result i32)",
    "call_start": "(param i32 i32 i32 i32) (result i32)",
    "call_result": "(param i32 i32 i32) (result i32)",
    "call_close": "(param i32) (result i32)",
}
TEXT, CELL, BUFFER, NUMBER = 8, 1024, 2048, 64
"""Where the guest keeps: a text argument, a length cell, an output buffer, the call's result."""
PAGE = 65536


def probe(call: str, *, text: bytes = b"", capacity: int = 0, memory: bool = True) -> str:
    """A guest that makes one call and writes out what it returned, the cell and the buffer."""
    imports = "".join(
        f'(import "spear" "{name}" (func ${name} {kind}))' for name, kind in SIGNATURES.items()
    )
    data = "".join(f"\\{byte:02x}" for byte in text)
    store = "i64.store" if call.startswith(("(call $time", "(call $wall", "(call $rand")) else ""
    exported = '(export "memory")' if memory else ""
    return f"""(module {imports}
      (memory {exported} 1) (data (i32.const {TEXT}) "{data}")
      (func (export "_start")
        (i32.store (i32.const {CELL}) (i32.const {capacity}))
        ({store or "i32.store"} (i32.const {NUMBER}) {call})
        (drop (call $output_write (i32.const {NUMBER}) (i32.const 8)))
        (drop (call $output_write (i32.const {CELL}) (i32.const 4)))
        (drop (call $output_write (i32.const {BUFFER}) (i32.const 64)))))"""


@attrs.frozen
class Answer:
    number: int
    long: int
    cell: int
    buffer: bytes
    response: Any


async def ask(guests: Any, call: str, payload: bytes = b"", **fields: Any) -> Answer:
    spec = {name: fields.pop(name) for name in ("text", "capacity") if name in fields}
    artifact = {name: fields.pop(name) for name in ("env", "values_of_secrets") if name in fields}
    async with guests.open(probe(call, **spec), **artifact) as instance:
        response = await instance.execute(guests.request(payload, **fields))
    assert response.error is None, response.error
    long, cell = struct.unpack_from("<qI", response.payload)
    number = struct.unpack_from("<i", response.payload)[0]
    return Answer(number, long, cell, response.payload[12:].rstrip(b"\0"), response)


def args(*numbers: int) -> str:
    return " ".join(f"(i32.const {number})" for number in numbers)


# --- log, time, random -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "name"),
    [(0, "trace"), (1, "debug"), (2, "info"), (3, "warn"), (4, "error"), (9, "info"), (-1, "info")],
)
async def test_log_levels(guests: Any, log: Any, level: int, name: str) -> None:
    answer = await ask(guests, f"(call $log {args(level, TEXT, 5)})", text=b"hello")
    assert answer.number == 0
    assert log.lines == [("e1", "hello", name, "guest")]


async def test_log_replaces_what_is_not_utf8(guests: Any, log: Any) -> None:
    await ask(guests, f"(call $log {args(2, TEXT, 3)})", text=b"a\xffb")
    assert log.lines[0][1] == "a\ufffdb"


@pytest.mark.parametrize(
    ("ptr", "length", "errno"),
    [(TEXT, 16385, -22), (TEXT, -1, -22), (-8, 4, -14), (PAGE - 2, 4, -14), (PAGE, 0, 0)],
)
async def test_log_refuses_bad_ranges(
    guests: Any, log: Any, ptr: int, length: int, errno: int
) -> None:
    answer = await ask(guests, f"(call $log {args(2, ptr, length)})")
    assert answer.number == errno
    assert len(log.lines) == (0 if errno else 1)


async def test_log_entries_keep_their_order(guests: Any, log: Any) -> None:
    code = """(module (import "spear" "log" (func $log (param i32 i32 i32) (result i32)))
      (import "spear" "sleep_ms" (func $sleep (param i32)))
      (memory (export "memory") 1) (data (i32.const 0) "abc")
      (func (export "_start")
        (drop (call $log (i32.const 2) (i32.const 0) (i32.const 1)))
        (call $sleep (i32.const 1))
        (drop (call $log (i32.const 2) (i32.const 1) (i32.const 1)))
        (drop (call $log (i32.const 2) (i32.const 2) (i32.const 1)))))"""
    await guests.run(code)
    assert [entry[1] for entry in log.lines] == ["a", "b", "c"]


async def test_clocks(guests: Any) -> None:
    before = time.time()
    now = (await ask(guests, "(call $time_now_ms)")).long
    seconds = (await ask(guests, "(call $wall_time_s)")).long
    assert int(before * 1000) <= now <= time.time() * 1000
    assert int(before) <= seconds <= time.time()


async def test_random_numbers_use_all_64_bits(guests: Any) -> None:
    numbers = [(await ask(guests, "(call $random_i64)")).long for _ in range(20)]
    assert len(set(numbers)) == 20
    assert any(number < 0 for number in numbers)
    assert any(abs(number) > 1 << 40 for number in numbers)


# --- input, output, context --------------------------------------------------------------------


async def test_input_len(guests: Any) -> None:
    assert (await ask(guests, "(call $input_len)", b"12345")).number == 5


async def test_input_read_is_the_whole_payload_and_repeatable(guests: Any) -> None:
    call = f"(call $input_read {args(BUFFER, CELL)})"
    answer = await ask(guests, f"(block (result i32) (drop {call}) {call})", b"hello", capacity=64)
    assert (answer.number, answer.cell, answer.buffer) == (5, 5, b"hello")


async def test_a_buffer_too_small_gets_28_and_the_size_and_is_not_touched(guests: Any) -> None:
    answer = await ask(guests, f"(call $input_read {args(BUFFER, CELL)})", b"hello", capacity=4)
    assert (answer.number, answer.cell, answer.buffer) == (-28, 5, b"")


async def test_a_buffer_that_fits_exactly(guests: Any) -> None:
    answer = await ask(guests, f"(call $input_read {args(BUFFER, CELL)})", b"hello", capacity=5)
    assert (answer.number, answer.cell, answer.buffer) == (5, 5, b"hello")


@pytest.mark.parametrize(
    ("out", "cell"), [(PAGE - 2, CELL), (BUFFER, PAGE - 2), (BUFFER, -4), (-1, CELL)]
)
async def test_buffers_outside_memory_are_efault(guests: Any, out: int, cell: int) -> None:
    answer = await ask(guests, f"(call $input_read {args(out, cell)})", b"hello", capacity=64)
    assert answer.number == -14


async def test_empty_input_is_length_zero(guests: Any) -> None:
    answer = await ask(guests, f"(call $input_read {args(BUFFER, CELL)})", capacity=0)
    assert (answer.number, answer.cell) == (0, 0)


async def test_content_types_both_ways(guests: Any) -> None:
    answer = await ask(
        guests, f"(call $input_content_type {args(BUFFER, CELL)})",
        capacity=64, content_type="text/plain",
    )  # fmt: skip
    assert answer.buffer == b"text/plain"
    answer = await ask(guests, f"(call $output_content_type {args(TEXT, 9)})", text=b"image/png")
    assert answer.number == 0
    assert answer.response.content_type == "image/png"


async def test_a_content_type_with_control_characters_is_refused(guests: Any) -> None:
    answer = await ask(guests, f"(call $output_content_type {args(TEXT, 3)})", text=b"a\nb")
    assert answer.number == -22


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("execution_id", "e1"),
        ("task_id", "t1"),
        ("attempt", "3"),
        ("artifact", "guest@1"),
        ("trace", "00-abc-def-01"),
        ("env.COLOUR", "green"),
        ("env.KEY", "hidden"),
        ("context.for", "ada"),
    ],
)
async def test_context(guests: Any, name: str, value: str) -> None:
    answer = await ask(
        guests, f"(call $context_get {args(TEXT, len(name), BUFFER, CELL)})",
        text=name.encode(), capacity=64, attempt=3, trace="00-abc-def-01", env={"COLOUR": "green"},
        values_of_secrets={"KEY": "hidden"}, context={"for": "ada"},
    )  # fmt: skip
    assert (answer.number, answer.buffer) == (len(value), value.encode())


async def test_the_deadline_is_a_time_of_day(guests: Any) -> None:
    answer = await ask(
        guests, f"(call $context_get {args(TEXT, 11, BUFFER, CELL)})",
        text=b"deadline_ms", capacity=64, deadline_s=60.0,
    )  # fmt: skip
    assert abs(int(answer.buffer) / 1000 - 60 - time.time()) < 5


@pytest.mark.parametrize(
    "name", [b"deadline_ms", b"nonsense", b"env.ABSENT", b"context.for", b"x" * 300]
)
async def test_unknown_context_is_enoent(guests: Any, name: bytes) -> None:
    answer = await ask(
        guests, f"(call $context_get {args(TEXT, len(name), BUFFER, CELL)})",
        text=name, capacity=64,
    )  # fmt: skip
    assert answer.number == -2


async def test_without_an_exported_memory_pointers_are_efault(guests: Any, log: Any) -> None:
    code = probe(f"(call $log {args(2, TEXT, 1)})", text=b"x", memory=False).replace(
        '(func (export "_start")',
        f"""(func (export "_start")
        (if (i32.ne (call $log {args(2, TEXT, 1)}) (i32.const -14)) (then unreachable))""",
    )
    response = await guests.run(code)
    assert response.error is None
    assert log.lines == []


async def test_a_host_function_that_breaks_ends_its_guest_only(
    guests: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> int:
        raise OSError("no entropy")

    code = probe("(call $random_i64)")
    with monkeypatch.context() as patch:
        patch.setattr(_hostcalls, "random_i64", broken)
        response = await guests.run(code)
    assert response.error.code == "internal"
    assert response.error.message == "a host function failed: OSError: no entropy"
    assert "no entropy" in caplog.text
    assert (await guests.run(code)).error is None


async def test_hostcalls_work_in_the_start_function(guests: Any, log: Any) -> None:
    """Before the exports are known, the memory is found through the caller."""
    await guests.run(
        """(module (import "spear" "log" (func $log (param i32 i32 i32) (result i32)))
          (memory (export "memory") 1) (data (i32.const 0) "boot")
          (func $boot (drop (call $log (i32.const 2) (i32.const 0) (i32.const 4))))
          (start $boot) (func (export "_start")))"""
    )
    assert [entry[1] for entry in log.lines] == ["boot"]


async def test_memory_that_grew_is_seen(guests: Any) -> None:
    response = await guests.run(
        """(module (import "spear" "output_write" (func $out (param i32 i32) (result i32)))
          (memory (export "memory") 1)
          (func (export "_start")
            (drop (call $out (i32.const 0) (i32.const 1)))
            (drop (memory.grow (i32.const 1)))
            (i32.store8 (i32.const 131071) (i32.const 65))
            (drop (call $out (i32.const 131071) (i32.const 1)))))"""
    )
    assert response.payload == b"\0A"
