;; CRC-32 of the input, as zlib computes it, in eight hexadecimal digits: a function guest by hand.
(module
  (import "spear" "log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "0123456789abcdef")
  (data (i32.const 32) "crc32: input read")
  (global $free (mut i32) (i32.const 1024))

  ;; The host asks for room for the input. Nothing is ever given back: each call gets a new guest.
  (func (export "spear_alloc") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free (i32.add (local.get $at) (local.get $size)))
    (block $fits
      (br_if $fits (i32.le_u (global.get $free) (i32.shl (memory.size) (i32.const 16))))
      (if (i32.eq (i32.const -1)
                  (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get $size) (i32.const 16)))))
        (then (return (i32.const 0)))))
    (local.get $at))

  (func $crc32 (param $at i32) (param $len i32) (result i32)
    (local $crc i32) (local $end i32) (local $bit i32)
    (local.set $crc (i32.const -1))
    (local.set $end (i32.add (local.get $at) (local.get $len)))
    (block $done
      (loop $byte
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (local.set $crc (i32.xor (local.get $crc) (i32.load8_u (local.get $at))))
        (local.set $bit (i32.const 8))
        (loop $next
          (local.set $crc
            (i32.xor (i32.shr_u (local.get $crc) (i32.const 1))
                     (i32.and (i32.const 0xEDB88320)
                              (i32.sub (i32.const 0) (i32.and (local.get $crc) (i32.const 1))))))
          (local.set $bit (i32.sub (local.get $bit) (i32.const 1)))
          (br_if $next (local.get $bit)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $byte)))
    (i32.xor (local.get $crc) (i32.const -1)))

  ;; Input at $at; the answer is (address << 32 | length) of the output.
  (func (export "handle") (param $at i32) (param $len i32) (result i64)
    (local $crc i32) (local $digit i32)
    (local.set $crc (call $crc32 (local.get $at) (local.get $len)))
    (drop (call $log (i32.const 2) (i32.const 32) (i32.const 17)))
    (loop $next
      (i32.store8 (i32.add (i32.const 64) (local.get $digit))
        (i32.load8_u (i32.add (i32.const 16)
          (i32.and (i32.const 15)
            (i32.shr_u (local.get $crc)
              (i32.sub (i32.const 28) (i32.shl (local.get $digit) (i32.const 2))))))))
      (local.set $digit (i32.add (local.get $digit) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $digit) (i32.const 8))))
    (i32.store8 (i32.const 72) (i32.const 10))
    (i64.or (i64.shl (i64.const 64) (i64.const 32)) (i64.const 9))))
