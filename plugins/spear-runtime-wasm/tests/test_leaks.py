"""What a thousand executions leave behind: nothing."""

from __future__ import annotations

import gc
import threading
from typing import Any

import psutil
import trio
import trio.testing

EXECUTIONS = 1000
ALLOWED = 8 << 20
"""Bytes of resident memory: noise of the interpreter, not a page for each execution."""
ECHO = """(module (memory (export "memory") 2)
  (func (export "spear_alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
      (i64.extend_i32_u (local.get 1)))))"""
TRAP = '(module (func $deep (call $deep)) (func (export "_start") (call $deep)))'
SLEEP = """(module (import "spear" "sleep_ms" (func $sleep (param i32)))
  (memory (export "memory") 1) (func (export "_start") (call $sleep (i32.const 60000))))"""


class Growth:
    def __init__(self) -> None:
        gc.collect()  # what earlier tests have left is not to go meanwhile
        self._process = psutil.Process()
        self._memory = self._process.memory_info().rss
        self._files = self._process.num_fds()
        self._threads = threading.active_count()

    def check(self) -> None:
        gc.collect()
        assert self._process.num_fds() == self._files
        assert threading.active_count() <= self._threads
        assert self._process.memory_info().rss - self._memory < ALLOWED


async def repeat(guests: Any, code: str, times: int, payload: bytes = b"") -> None:
    for _ in range(times):
        with trio.move_on_after(0 if code is SLEEP else 60):
            await guests.run(code, payload)


async def cancel_in_sleep(guests: Any, times: int) -> None:
    for _ in range(times // 50):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(guests.run, SLEEP)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


async def test_executions(guests: Any) -> None:
    await repeat(guests, ECHO, 100, b"x" * 1024)
    growth = Growth()
    await repeat(guests, ECHO, EXECUTIONS, b"x" * 1024)
    growth.check()


async def test_traps(guests: Any) -> None:
    await repeat(guests, TRAP, 50)
    growth = Growth()
    await repeat(guests, TRAP, EXECUTIONS // 4)
    growth.check()


async def test_cancelled_sleepers(guests: Any) -> None:
    await cancel_in_sleep(guests, 100)
    growth = Growth()
    await cancel_in_sleep(guests, EXECUTIONS)
    growth.check()


async def test_reuse(guests: Any) -> None:
    async with guests.open(ECHO, reuse=True) as instance:
        for _ in range(100):
            await instance.execute(guests.request(b"x" * 1024))
        growth = Growth()
        for _ in range(EXECUTIONS):
            await instance.execute(guests.request(b"x" * 1024))
        growth.check()
