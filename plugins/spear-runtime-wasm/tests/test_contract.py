"""What every runtime promises."""

from __future__ import annotations

from spear_core.testing import RuntimeContract, Sample
from spear_runtime_wasm.plugin import spear_runtimes

(SPEC,) = spear_runtimes()

MEMORY = '(memory (export "memory") 2)'
ALLOC = """(global $next (mut i32) (i32.const 1024))
  (func (export "spear_alloc") (param $size i32) (result i32) (local $at i32)
    (local.set $at (global.get $next))
    (global.set $next (i32.add (global.get $next) (local.get $size)))
    (drop (memory.grow (i32.div_u (local.get $size) (i32.const 65536))))
    (local.get $at))"""
SAME = """(i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
      (i64.extend_i32_u (local.get 1)))"""


class TestWasmRuntime(RuntimeContract):
    spec = SPEC
    echo = Sample(
        filename="echo.wat",
        content=f"""(module {MEMORY} {ALLOC}
          (func (export "handle") (param i32 i32) (result i64) {SAME}))""",
    )
    fails = Sample(
        filename="fails.wat",
        content=f"""(module {MEMORY} {ALLOC}
          (func (export "handle") (param i32 i32) (result i64) unreachable))""",
    )
    loops = Sample(filename="loops.wat", content='(module (func (export "_start") (loop (br 0))))')
    hungry = Sample(
        filename="hungry.wat",
        content="""(module (memory (export "memory") 1) (func (export "_start")
          (if (i32.eq (memory.grow (i32.const 4096)) (i32.const -1)) (then unreachable))))""",
    )
    logs = Sample(
        filename="logs.wat",
        content=f"""(module (import "spear" "log" (func $log (param i32 i32 i32) (result i32)))
          {MEMORY} {ALLOC} (data (i32.const 0) "hello from the guest")
          (func (export "handle") (param i32 i32) (result i64)
            (drop (call $log (i32.const 2) (i32.const 0) (i32.const 20))) {SAME}))""",
    )
    malformed = Sample(filename="malformed.wasm", content=b"\0asm\x01\0\0\0\x99")
