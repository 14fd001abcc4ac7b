"""Our prototypes against the ones that wasmtime's package generates from its C headers."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest
import wasmtime._bindings as theirs

from spear_runtime_wasm._ffi import _guest, _library, _linker, _trap

SIGNATURES = {**_library._HELD, **_library._RELEASED}


def width(kind: Any) -> int:
    return 0 if kind is None else ctypes.sizeof(kind)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_prototype_has_the_right_widths(name: str) -> None:
    bound = getattr(theirs, f"_{name}")
    result, *arguments = SIGNATURES[name]
    assert width(result) == width(bound.restype)
    assert [width(kind) for kind in arguments] == [width(kind) for kind in bound.argtypes]


def test_the_sizes_of_structures() -> None:
    assert ctypes.sizeof(theirs.wasmtime_val_t) == _library.VAL_SIZE
    assert ctypes.sizeof(theirs.wasmtime_extern_t) == _library.EXTERN_SIZE
    assert ctypes.sizeof(theirs.wasmtime_instance_t) == _library.INSTANCE_SIZE
    assert ctypes.sizeof(theirs.wasmtime_val_raw_t) == 16
    assert theirs.wasmtime_val_t.of.offset == theirs.wasmtime_extern_t.of.offset == 8
    assert ctypes.sizeof(theirs.wasmtime_async_continuation_t) == _linker._CONTINUATION_FIELDS.size
    assert ctypes.sizeof(theirs.wasm_byte_vec_t) == ctypes.sizeof(_library.ByteVec)


def test_the_numbers_of_traps() -> None:
    prefix = "WASMTIME_TRAP_CODE_"
    names = {
        code.value: code.name.removeprefix(prefix).lower()
        for code in theirs.wasmtime_trap_code_enum
    }
    for number, name in _trap.TRAPS.items():
        assert names[number].removesuffix("_code_reached") == name


def test_the_kind_of_a_memory() -> None:
    from wasmtime import _ffi

    assert _ffi.WASMTIME_EXTERN_MEMORY.value == _guest._EXTERN_MEMORY


def test_running_guests_needs_no_import_of_the_wrapper() -> None:
    """It would cost a tenth of a second at every start."""
    code = (
        "import sys, spear_runtime_wasm._host as h; h.get_host(16);"
        "sys.exit('wasmtime' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
