"""A guest calls other functions (guest ABI 17), number by number."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio

from spear_core.errors import SpearError

EBADF, ENOMEM, EFAULT, ENOSPC = -9, -12, -14, -28
NAME, INPUT, CELL, BUFFER, NUMBERS = 8, 64, 1024, 2048, 4096
"""Where the guest keeps: a function's name, its input, a length, an output buffer, the results."""


def packed(head: Any, value: bytes = b"") -> bytes:
    data = json.dumps(head).encode()
    return struct.pack("<I", len(data)) + data + value


def unpacked(payload: bytes) -> tuple[Any, bytes]:
    end = 4 + struct.unpack_from("<I", payload)[0]
    return json.loads(payload[4:end]), payload[end:]


class Functions:
    """What a node answers, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, bytes]] = []
        self.outcome: Callable[[], bytes] = lambda: b"an answer"

    def answer(self, name: str) -> Callable[[bytes], bytes]:
        def answered(payload: bytes) -> bytes:
            head, value = unpacked(payload)
            self.asked.append((name, head, value))
            number = sum(verb == "start" for verb, _, _ in self.asked)
            if name != "start":
                output = self.outcome() if name == "wait" else b""
                return packed({"task_id": head["task_id"], "content_type": "x/y"}, output)
            if head["function"] == "nobody":
                raise SpearError("no artifact 'nobody'", code="not_found")
            return packed({"task_id": f"t-{number}"})

        return answered


@pytest.fixture
def functions(log: Any) -> Functions:
    functions = Functions()
    log.answers = {f"functions.{n}": functions.answer(n) for n in ("start", "wait", "cancel")}
    return functions


def guest(*calls: str, capacity: int = 64, name: bytes = b"other") -> str:
    """A guest that makes these calls and writes out what each returned, the cell, the buffer."""
    stores = "\n".join(
        f"(i32.store (i32.const {NUMBERS + 4 * n}) {call})" for n, call in enumerate(calls)
    )
    return f"""(module
      (import "spear" "call_start" (func $start (param i32 i32 i32 i32) (result i32)))
      (import "spear" "call_result" (func $result (param i32 i32 i32) (result i32)))
      (import "spear" "call_close" (func $close (param i32) (result i32)))
      (import "spear" "output_write" (func $write (param i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const {NAME}) "{name.decode()}") (data (i32.const {INPUT}) "the input")
      (func (export "_start")
        (i32.store (i32.const {CELL}) (i32.const {capacity}))
        {stores}
        (drop (call $write (i32.const {NUMBERS}) (i32.const {4 * len(calls)})))
        (drop (call $write (i32.const {CELL}) (i32.const 4)))
        (drop (call $write (i32.const {BUFFER}) (i32.const 64)))))"""


def start(name_len: int = 5, in_ptr: int = INPUT) -> str:
    numbers = (NAME, name_len, in_ptr, 9)
    return f"(call $start {' '.join(f'(i32.const {n})' for n in numbers)})"


def result(fd: int) -> str:
    return f"(call $result (i32.const {fd}) (i32.const {BUFFER}) (i32.const {CELL}))"


def close(fd: int) -> str:
    return f"(call $close (i32.const {fd}))"


async def numbers_of(guests: Any, *calls: str, **fields: Any) -> tuple[list[int], int, bytes]:
    response = await guests.run(guest(*calls, **fields))
    assert response.error is None, response.error
    count = len(calls)
    *numbers, cell = struct.unpack_from(f"<{count}iI", response.payload)
    return numbers, cell, response.payload[4 * count + 4 :].rstrip(b"\0")


async def test_start_result_close(guests: Any, functions: Functions) -> None:
    numbers, cell, output = await numbers_of(
        guests, start(), start(), result(1001), result(1001), close(1001), close(1001), result(1001)
    )
    assert numbers == [1000, 1001, 9, 9, 0, 0, EBADF]
    assert (cell, output) == (9, b"an answer")
    assert functions.asked == [
        ("start", {"function": "other"}, b"the input"),
        ("start", {"function": "other"}, b"the input"),
        ("wait", {"task_id": "t-2"}, b""),
    ]


async def test_a_buffer_that_is_too_small_can_be_tried_again(
    guests: Any, functions: Functions
) -> None:
    numbers, cell, output = await numbers_of(
        guests, start(), result(1000), result(1000), capacity=3
    )
    assert numbers == [1000, ENOSPC, 9]  # the first wrote the size that the second then had
    assert (cell, output) == (9, b"an answer")
    assert [verb for verb, _, _ in functions.asked] == ["start", "wait"]


async def test_closing_a_call_that_runs_cancels_it(guests: Any, functions: Functions) -> None:
    numbers, _, _ = await numbers_of(guests, start(), close(1000), close(1000))
    assert numbers == [1000, 0, 0]
    assert functions.asked[1:] == [("cancel", {"task_id": "t-1"}, b"")]


async def test_bad_arguments(guests: Any, functions: Functions) -> None:
    numbers, _, _ = await numbers_of(
        guests, start(name_len=-1), start(in_ptr=65530), result(1000), close(1000), close(2)
    )
    assert numbers == [EFAULT, EFAULT, EBADF, EBADF, EBADF]
    assert functions.asked == []


async def test_failures_are_numbers_and_a_line_in_the_log(
    guests: Any, functions: Functions, log: Any
) -> None:
    numbers, _, _ = await numbers_of(guests, start(name_len=6), name=b"nobody")
    assert numbers == [-2]

    def late() -> bytes:
        raise SpearError("the task's deadline passed", code="deadline_exceeded")

    functions.outcome = late
    numbers, _, _ = await numbers_of(guests, start(), result(1000), result(1000), close(1000))
    assert numbers == [1000, -110, -110, 0]
    assert [(line[1], line[2], line[3]) for line in log.lines] == [
        ("call of 'nobody' failed: not_found: no artifact 'nobody'", "warn", "node"),
        ("call of 'other' failed: deadline_exceeded: the task's deadline passed", "warn", "node"),
    ]


async def test_too_many_open_calls(guests: Any, functions: Functions) -> None:
    code = guest(start()).replace(
        f"(i32.store (i32.const {NUMBERS}) {start()})",
        f"""(local $n i32) (loop $again
          (i32.store (i32.const {NUMBERS}) {start()})
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $again (i32.lt_u (local.get $n) (i32.const 1025))))""",
    )
    code = code.replace(
        f"""(i32.store (i32.const {CELL}) (i32.const 64))
        (local $n i32)""",
        f"""(local $n i32) (i32.store (i32.const {CELL}) (i32.const 64))""",
    )
    response = await guests.run(code)
    assert response.error is None, response.error
    assert struct.unpack_from("<i", response.payload)[0] == ENOMEM
    assert len(functions.asked) == 1024


async def test_a_guest_that_waits_for_its_call_can_be_cancelled(
    guests: Any, functions: Functions, log: Any
) -> None:
    waiting = trio.Event()
    answer = log.call

    async def call(execution_id: str, name: str, payload: bytes) -> bytes:
        if name == "functions.wait":
            waiting.set()
            await trio.sleep_forever()
        return bytes(await answer(execution_id, name, payload))

    log.call = call
    async with guests.open(guest(start(), result(1000))) as instance, trio.open_nursery() as n:
        n.start_soon(instance.execute, guests.request())
        await waiting.wait()
        n.cancel_scope.cancel()
