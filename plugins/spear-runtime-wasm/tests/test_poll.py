"""`poll_oneoff` of WASI, subscription by subscription."""

from __future__ import annotations

import struct
import time
from collections.abc import Awaitable
from typing import Any

import pytest

from spear_runtime_wasm import _wasi
from spear_runtime_wasm._wasi import _EVENT, _SUBSCRIPTION

REALTIME, MONOTONIC = 0, 1
CLOCK, READ, WRITE = 0, 1, 2
ABSOLUTE = 1
MS = 1_000_000
SUCCESS, BADF, FAULT, INVAL = 0, 8, 21, 28


def clock(name: int, nanoseconds: int, *, clock: int = MONOTONIC, flags: int = 0) -> bytes:
    return _SUBSCRIPTION.pack(name, CLOCK, clock, nanoseconds, 0, flags)


def stream(name: int, tag: int, fd: int) -> bytes:
    return _SUBSCRIPTION.pack(name, tag, fd, 0, 0, 0)


BEFORE = 0.3
"""Seconds that the guest sleeps before it polls."""


def guest(*subscriptions: bytes, count: int | None = None, events: int = 4096) -> str:
    data = "".join(f"\\{byte:02x}" for byte in b"".join(subscriptions))
    number = len(subscriptions) if count is None else count
    return f"""(module
      (import "wasi_snapshot_preview1" "poll_oneoff"
        (func $poll (param i32 i32 i32 i32) (result i32)))
      (import "spear" "output_write" (func $write (param i32 i32) (result i32)))
      (import "spear" "sleep_ms" (func $sleep (param i32)))
      (memory (export "memory") 1) (data (i32.const 64) "{data}")
      (func (export "_start")
        (call $sleep (i32.const {int(BEFORE * 1000)}))
        (i32.store (i32.const 0)
          (call $poll (i32.const 64) (i32.const {events}) (i32.const {number}) (i32.const 4)))
        (drop (call $write (i32.const 0) (i32.const 8)))
        (drop (call $write (i32.const 4096) (i32.mul (i32.load (i32.const 4)) (i32.const 32))))))"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which polls were to sleep: as long as they last on a machine that is quick
    enough, on any other."""
    found: list[float] = []
    sleep_then_store = _wasi._sleep_then_store

    def recording(guest: Any, seconds: float, *rest: Any) -> Awaitable[int]:
        found.append(seconds)
        return sleep_then_store(guest, seconds, *rest)

    monkeypatch.setattr(_wasi, "_sleep_then_store", recording)
    return found


async def poll(guests: Any, code: str) -> tuple[int, list[tuple[int, int, int]], float]:
    """The errno, the events as (userdata, errno, tag), and the seconds that the call took."""
    await guests.runtime.prepare(guests.make_artifact(code))
    started = time.monotonic()
    response = await guests.run(code, b"12345")
    assert response.error is None, response.error
    errno, _ = struct.unpack_from("<iI", response.payload)
    events = [event[:3] for event in _EVENT.iter_unpack(response.payload[8:])]
    return errno, events, time.monotonic() - started - BEFORE


async def test_the_first_of_several_clocks(guests: Any, asked: list[float]) -> None:
    code = guest(clock(1, 60_000 * MS), clock(2, 50 * MS), clock(3, 70 * MS))
    errno, events, seconds = await poll(guests, code)
    assert (errno, events) == (SUCCESS, [(2, SUCCESS, CLOCK)])
    assert asked == [0.05]
    assert seconds >= 0.05


async def test_a_relative_time_counts_from_the_call(guests: Any) -> None:
    _, _, seconds = await poll(guests, guest(clock(1, 40 * MS)))
    assert seconds >= 0.04


async def test_an_absolute_time_counts_from_the_start(guests: Any, asked: list[float]) -> None:
    code = guest(clock(1, 330 * MS, flags=ABSOLUTE))
    errno, events, seconds = await poll(guests, code)
    assert (errno, events) == (SUCCESS, [(1, SUCCESS, CLOCK)])
    assert sum(asked) <= 0.03  # nothing, if the guest began to poll so late
    assert seconds >= 0.03


async def test_an_absolute_time_that_has_passed(guests: Any, asked: list[float]) -> None:
    code = guest(clock(1, 290 * MS, flags=ABSOLUTE), clock(2, 0, clock=REALTIME, flags=ABSOLUTE))
    errno, events, _ = await poll(guests, code)
    assert (errno, [event[0] for event in events]) == (SUCCESS, [1, 2])
    assert not asked


async def test_streams_are_ready_at_once(guests: Any, asked: list[float]) -> None:
    code = guest(clock(1, 60_000 * MS), stream(2, READ, 0), stream(3, WRITE, 1), stream(4, READ, 9))
    errno, events, _ = await poll(guests, code)
    assert errno == SUCCESS
    assert events == [(2, SUCCESS, READ), (3, SUCCESS, WRITE), (4, BADF, READ)]
    assert not asked


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (guest(count=0), INVAL),
        (guest(count=5000), INVAL),
        (guest(clock(1, 0), events=65530), FAULT),
        (guest(clock(1, MS), events=65530), FAULT),
        (guest(clock(1, 0), count=1024).replace("(i32.const 64) (i32.const 4096)",
                                                "(i32.const 60000) (i32.const 4096)"), FAULT),
    ],
)  # fmt: skip
async def test_what_is_refused(guests: Any, code: str, expected: int) -> None:
    errno, _, _ = await poll(guests, code)
    assert errno == expected
