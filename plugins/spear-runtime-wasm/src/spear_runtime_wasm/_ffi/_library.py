"""Prototypes of the C functions used, bound straight to wasmtime's shared library.

The `wasmtime` package brings the library; its Python wrapper is not imported, because that costs a
tenth of a second and its conversions cost more than the calls. Signatures are those of
`wasmtime._bindings` 50.x; a test compares them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform
import sys
from collections.abc import Callable
from ctypes import c_bool, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

PTR = c_void_p

VAL_SIZE = 32
"""sizeof(wasmtime_val_t): a kind byte, then at +8 the value."""
EXTERN_SIZE = 32
"""sizeof(wasmtime_extern_t): a kind byte, then at +8 the item."""
INSTANCE_SIZE = 16
POINTER_SIZE = 8

HOST_CALLBACK = ctypes.CFUNCTYPE(PTR, PTR, PTR, PTR, c_size_t)
"""wasmtime_func_unchecked_callback_t: (env, caller, args and results, slots) -> trap or NULL."""
ASYNC_CALLBACK = ctypes.CFUNCTYPE(None, PTR, PTR, PTR, c_size_t, PTR, c_size_t, PTR, PTR)
"""wasmtime_func_async_callback_t: (env, caller, args, n, results, n, &trap, &continuation)."""
CONTINUATION = ctypes.CFUNCTYPE(c_bool, PTR)

_DEFINE = (PTR, PTR, PTR, c_size_t, PTR, c_size_t, PTR)

# Short functions keep the interpreter lock: giving it up costs more than they take.
_HELD: dict[str, tuple[Any, ...]] = {
    "wasm_byte_vec_delete": (None, PTR),
    "wasm_config_new": (PTR,),
    "wasm_exporttype_name": (PTR, PTR),
    "wasm_exporttype_type": (PTR, PTR),
    "wasm_exporttype_vec_delete": (None, PTR),
    "wasm_externtype_as_functype_const": (PTR, PTR),
    "wasm_externtype_kind": (c_uint8, PTR),
    "wasm_frame_func_index": (c_uint32, PTR),
    "wasm_frame_module_offset": (c_size_t, PTR),
    "wasm_frame_vec_delete": (None, PTR),
    "wasm_functype_delete": (None, PTR),
    "wasm_functype_new": (PTR, PTR, PTR),
    "wasm_functype_params": (PTR, PTR),
    "wasm_functype_results": (PTR, PTR),
    "wasm_importtype_module": (PTR, PTR),
    "wasm_importtype_name": (PTR, PTR),
    "wasm_importtype_type": (PTR, PTR),
    "wasm_importtype_vec_delete": (None, PTR),
    "wasm_trap_delete": (None, PTR),
    "wasm_trap_message": (None, PTR, PTR),
    "wasm_trap_trace": (None, PTR, PTR),
    "wasm_valtype_kind": (c_uint8, PTR),
    "wasm_valtype_new": (PTR, c_uint8),
    "wasm_valtype_vec_new": (None, PTR, c_size_t, PTR),
    "wasi_config_new": (PTR,),
    "wasi_config_set_argv": (c_bool, PTR, c_size_t, PTR),
    "wasi_config_set_env": (c_bool, PTR, c_size_t, PTR, PTR),
    "wasmtime_caller_export_get": (c_bool, PTR, PTR, c_size_t, PTR),
    "wasmtime_config_async_stack_size_set": (None, PTR, c_size_t),
    "wasmtime_config_epoch_interruption_set": (None, PTR, c_bool),
    "wasmtime_config_max_wasm_stack_set": (None, PTR, c_size_t),
    "wasmtime_config_memory_may_move_set": (None, PTR, c_bool),
    "wasmtime_config_wasm_memory64_set": (None, PTR, c_bool),
    "wasmtime_config_wasm_threads_set": (None, PTR, c_bool),
    "wasmtime_context_epoch_deadline_async_yield_and_update": (PTR, PTR, c_uint64),
    "wasmtime_context_set_epoch_deadline": (None, PTR, c_uint64),
    "wasmtime_context_set_wasi": (PTR, PTR, PTR),
    "wasmtime_engine_increment_epoch": (None, PTR),
    "wasmtime_error_delete": (None, PTR),
    "wasmtime_error_exit_status": (c_bool, PTR, PTR),
    "wasmtime_error_message": (None, PTR, PTR),
    "wasmtime_error_wasm_trace": (None, PTR, PTR),
    "wasmtime_frame_func_name": (PTR, PTR),
    "wasmtime_func_call_async": (PTR, PTR, PTR, PTR, c_size_t, PTR, c_size_t, PTR, PTR),
    "wasmtime_instance_export_get": (c_bool, PTR, PTR, PTR, c_size_t, PTR),
    "wasmtime_instance_pre_delete": (None, PTR),
    "wasmtime_instance_pre_instantiate_async": (PTR, PTR, PTR, PTR, PTR, PTR),
    "wasmtime_linker_allow_shadowing": (None, PTR, c_bool),
    "wasmtime_linker_define_async_func": (*_DEFINE, ASYNC_CALLBACK, PTR, PTR),
    "wasmtime_linker_define_func_unchecked": (*_DEFINE, HOST_CALLBACK, PTR, PTR),
    "wasmtime_linker_define_wasi": (PTR, PTR),
    "wasmtime_linker_delete": (None, PTR),
    "wasmtime_linker_instantiate_pre": (PTR, PTR, PTR, PTR),
    "wasmtime_linker_new": (PTR, PTR),
    "wasmtime_memory_data": (PTR, PTR, PTR),
    "wasmtime_memory_data_size": (c_size_t, PTR, PTR),
    "wasmtime_module_delete": (None, PTR),
    "wasmtime_module_exports": (None, PTR, PTR),
    "wasmtime_module_imports": (None, PTR, PTR),
    "wasmtime_pooling_allocation_config_delete": (None, PTR),
    "wasmtime_pooling_allocation_config_linear_memory_keep_resident_set": (None, PTR, c_size_t),
    "wasmtime_pooling_allocation_config_max_memory_size_set": (None, PTR, c_size_t),
    "wasmtime_pooling_allocation_config_max_tables_per_module_set": (None, PTR, c_uint32),
    "wasmtime_pooling_allocation_config_new": (PTR,),
    "wasmtime_pooling_allocation_config_table_elements_set": (None, PTR, c_size_t),
    "wasmtime_pooling_allocation_config_table_keep_resident_set": (None, PTR, c_size_t),
    "wasmtime_pooling_allocation_config_total_core_instances_set": (None, PTR, c_uint32),
    "wasmtime_pooling_allocation_config_total_memories_set": (None, PTR, c_uint32),
    "wasmtime_pooling_allocation_config_total_stacks_set": (None, PTR, c_uint32),
    "wasmtime_pooling_allocation_config_total_tables_set": (None, PTR, c_uint32),
    "wasmtime_pooling_allocation_strategy_set": (None, PTR, PTR),
    "wasmtime_store_context": (PTR, PTR),
    "wasmtime_store_limiter": (None, PTR, c_int64, c_int64, c_int64, c_int64, c_int64),
    "wasmtime_store_new": (PTR, PTR, PTR, PTR),
    "wasmtime_trap_code": (c_bool, PTR, PTR),
    "wasmtime_trap_new": (PTR, PTR, c_size_t),
}

# Functions that run a guest, compile, or may take long: other threads go on meanwhile.
_RELEASED: dict[str, tuple[Any, ...]] = {
    "wasm_engine_new_with_config": (PTR, PTR),
    "wasmtime_call_future_delete": (None, PTR),
    "wasmtime_call_future_poll": (c_bool, PTR),
    "wasmtime_module_deserialize": (PTR, PTR, PTR, c_size_t, PTR),
    "wasmtime_module_new": (PTR, PTR, PTR, c_size_t, PTR),
    "wasmtime_module_serialize": (PTR, PTR, PTR),
    "wasmtime_store_delete": (None, PTR),
    "wasmtime_wat2wasm": (PTR, PTR, c_size_t, PTR),
}


class ByteVec(ctypes.Structure):
    """wasm_byte_vec_t and every other `wasm_*_vec_t`: a length and an array."""

    _fields_ = (("size", c_size_t), ("data", c_void_p))
    size: int
    data: int | None


def library_path() -> Path:
    """Where the installed `wasmtime` distribution keeps its library.

    Raises ImportError when it is not installed or has none for this machine.
    """
    spec = importlib.util.find_spec("wasmtime")
    if spec is None or spec.origin is None:
        raise ImportError("wasmtime is not installed")
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    name = {"darwin": "_libwasmtime.dylib"}.get(sys.platform, "_libwasmtime.so")
    path = Path(spec.origin).parent / f"{sys.platform}-{machine}" / name
    if not path.exists():
        raise ImportError(f"wasmtime has no library for {sys.platform} on {machine}: {path}")
    return path


class Library:
    """The bound functions, as attributes of the same name without the leading `wasmtime_`."""

    def __init__(self, path: str) -> None:
        held, released = ctypes.PyDLL(path), ctypes.CDLL(path)
        for names, prototype, dll in (
            (_HELD, ctypes.PYFUNCTYPE, held),
            (_RELEASED, ctypes.CFUNCTYPE, released),
        ):
            for name, signature in names.items():
                bound = prototype(*signature)((name, dll))
                setattr(self, name.removeprefix("wasmtime_"), bound)
        name, signature = "wasmtime_call_future_delete", (None, PTR)
        self.call_future_delete_ended = ctypes.PYFUNCTYPE(*signature)((name, held))
        """For a future that has ended: that is short, unlike unwinding a guest."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(name)

    def take_text(self, vector: ByteVec) -> str:
        """The text of a vector the library filled in, which is freed."""
        raw = ctypes.string_at(vector.data, vector.size) if vector.size and vector.data else b""
        self.wasm_byte_vec_delete(ctypes.addressof(vector))
        return raw.decode("utf-8", "replace")

    def take_error(self, error: int) -> str:
        """The message of a `wasmtime_error_t`, which is freed."""
        vector = ByteVec()
        self.error_message(error, ctypes.addressof(vector))
        self.error_delete(error)
        return self.take_text(vector)


@functools.cache
def load_library(path: str | None = None) -> Library:
    """The library of this process.

    Raises ImportError when it can't be found, OSError when it can't be loaded.
    """
    return Library(path or str(library_path()))
