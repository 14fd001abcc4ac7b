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
    streams = Sample(
        filename="streams.wat",
        content="""(module
          (import "spear" "input_len" (func $len (result i32)))
          (import "spear" "input_read" (func $read (param i32 i32) (result i32)))
          (import "spear" "output_write" (func $write (param i32 i32) (result i32)))
          (memory (export "memory") 64)
          (func (export "_start") (local $size i32)
            (loop $again
              (local.set $size (call $len))
              (if (local.get $size) (then
                (i32.store (i32.const 0) (local.get $size))
                (if (i32.lt_s (call $read (i32.const 8) (i32.const 0)) (i32.const 0))
                  (then unreachable))
                (if (call $write (i32.const 8) (local.get $size)) (then unreachable))
                (br $again))))))""",
    )
    floods = Sample(
        filename="floods.wat",
        content="""(module
          (import "wasi_snapshot_preview1" "fd_write"
            (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 2)
          (func (export "_start")
            (i32.store (i32.const 0) (i32.const 64))
            (i32.store (i32.const 4) (i32.const 4096))
            (loop $again
              (br_if $again (i32.eqz (call $write
                (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))))))""",
    )


class TestWasiCommand(TestWasmRuntime):
    """The same with guests that know nothing of SPEAR."""

    streams = Sample(
        filename="cat.wat",
        content="""(module
          (import "wasi_snapshot_preview1" "fd_read"
            (func $read (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "fd_write"
            (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 2)
          (func (export "_start")
            (loop $again
              (i32.store (i32.const 0) (i32.const 64))
              (i32.store (i32.const 4) (i32.const 65536))
              (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
              (i32.store (i32.const 4) (i32.load (i32.const 16)))
              (if (i32.load (i32.const 16)) (then
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
                (br $again))))))""",
    )
    echo = streams
