"""What went wrong inside a guest, read from wasmtime's trap or error and freed."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from ._library import ByteVec, Library

# wasmtime_trap_code_enum of 50.x, for core modules.
TRAPS = {
    0: "stack_overflow",
    1: "memory_out_of_bounds",
    2: "heap_misaligned",
    3: "table_out_of_bounds",
    4: "indirect_call_to_null",
    5: "bad_signature",
    6: "integer_overflow",
    7: "integer_division_by_zero",
    8: "bad_conversion_to_integer",
    9: "unreachable",
    10: "interrupt",
    11: "out_of_fuel",
    13: "null_reference",
    14: "array_out_of_bounds",
    15: "allocation_too_large",
    16: "cast_failure",
    49: "uncaught_exception",
}


class WasmFrame(NamedTuple):
    """One function of the guest's stack: its name where the module has names, and where in it."""

    function: str | None
    number: int
    offset: int
    """Byte offset into the module file."""


class GuestTrapError(Exception):
    """The guest stopped: a trap, an exit, or an error of wasmtime's."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        frames: tuple[WasmFrame, ...] = (),
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.frames = frames
        self.exit_code = exit_code


def take_trap(lib: Library, trap: int) -> GuestTrapError:
    number = ctypes.c_uint8()
    known = lib.trap_code(trap, ctypes.addressof(number))
    vector, frames = ByteVec(), ByteVec()
    lib.wasm_trap_message(trap, ctypes.addressof(vector))
    message = lib.take_text(vector).rstrip("\0")
    lib.wasm_trap_trace(trap, ctypes.addressof(frames))
    found = _take_frames(lib, frames)
    lib.wasm_trap_delete(trap)
    code = TRAPS.get(number.value, f"trap_{number.value}") if known else None
    return GuestTrapError(message, code=code, frames=found)


def take_failure(lib: Library, error: int) -> GuestTrapError:
    status = ctypes.c_int()
    exited = lib.error_exit_status(error, ctypes.addressof(status))
    frames = ByteVec()
    lib.error_wasm_trace(error, ctypes.addressof(frames))
    found = _take_frames(lib, frames)
    message = lib.take_error(error)
    return GuestTrapError(message, frames=found, exit_code=status.value if exited else None)


def _take_frames(lib: Library, vector: ByteVec) -> tuple[WasmFrame, ...]:
    found = []
    for index in range(vector.size if vector.data else 0):
        frame = ctypes.c_void_p.from_address((vector.data or 0) + index * 8).value
        name = lib.frame_func_name(frame)
        text = None
        if name:
            raw = ByteVec.from_address(name)
            text = ctypes.string_at(raw.data or 0, raw.size).decode("utf-8", "replace")
        number, offset = lib.wasm_frame_func_index(frame), lib.wasm_frame_module_offset(frame)
        found.append(WasmFrame(text, number, offset))
    lib.wasm_frame_vec_delete(ctypes.addressof(vector))
    return tuple(found)
