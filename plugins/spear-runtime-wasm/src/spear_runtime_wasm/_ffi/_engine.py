"""The engine, its settings, and modules that were compiled ahead of time."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
from collections.abc import Iterator
from typing import NamedTuple

from ._library import POINTER_SIZE, ByteVec, Library

MIB = 1 << 20
ASYNC_STACK = 8 * MIB
"""A fiber's stack. Host callbacks, Python ones, run on it. Address space only, until touched."""
WASM_STACK = 1 * MIB
KEEP_RESIDENT = 64 << 10
"""Memory of a free slot that is cleared instead of given back: saves 4 of 17 us for a small guest.
With 1 MiB a C program takes 30 % longer, and a crowd of guests leaves as many MiB behind."""
TABLE_KEEP_RESIDENT = 16 << 10
"""The same for tables, of 2048 functions: compilers make one nearly always, and giving it back
takes a tenth of a small execution."""
MAX_MEMORY = 4096 * MIB
MAX_TABLES = 4
FEWEST_SLOTS = 16
_SLOT_SPACE = MAX_MEMORY + 64 * MIB + ASYNC_STACK + 8 * MIB
"""Address space of one instance: its memory with guards, its stack, its tables."""

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)  # not on macOS

KINDS = {0: "func", 1: "global", 2: "table", 3: "memory", 4: "tag"}
VALUES = {0: "i32", 1: "i64", 2: "f32", 3: "f64", 4: "v128", 128: "externref", 129: "funcref"}
FUNC = "func"

Signature = tuple[tuple[str, ...], tuple[str, ...]]


class Import(NamedTuple):
    module: str
    name: str
    kind: str
    signature: Signature | None


class Export(NamedTuple):
    name: str
    kind: str
    signature: Signature | None


class EngineError(Exception):
    """wasmtime refused something; the text is its own."""


def new_config(lib: Library) -> int:
    """The settings that compiled code depends on; the same where it is made and where it runs."""
    config: int = lib.wasm_config_new()
    lib.config_epoch_interruption_set(config, True)
    lib.config_async_stack_size_set(config, ASYNC_STACK)
    lib.config_max_wasm_stack_set(config, WASM_STACK)
    lib.config_memory_may_move_set(config, False)  # a base address read once stays right
    lib.config_wasm_threads_set(config, False)
    lib.config_wasm_memory64_set(config, False)
    return config


def config_digest() -> str:
    """Changes whenever `new_config` makes code that an engine of before would refuse."""
    text = f"epoch,stack={WASM_STACK},fixed-base,no-threads,no-memory64"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def possible_slots(wanted: int) -> int:
    """How many instances this process can have address space for: `wanted`, or a half of it, or a
    quarter … wasmtime ends the process when it cannot have what it asks for, so this asks first.

    Raises EngineError when it is less than `FEWEST_SLOTS`.
    """
    slots = wanted
    while True:
        try:
            mmap.mmap(
                -1,
                slots * _SLOT_SPACE,
                flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE,
                prot=0,
            ).close()
        except OSError:
            slots //= 2
            if slots < min(FEWEST_SLOTS, wanted):
                raise EngineError(
                    f"this process may not have {FEWEST_SLOTS * _SLOT_SPACE >> 30} GiB of address"
                    " space, which wasmtime needs even for a few instances (see `ulimit -v`)"
                ) from None
        else:
            return slots


class Engine:
    """wasmtime's engine with room for `slots` live instances, in one reserved pool."""

    def __init__(self, lib: Library, *, slots: int) -> None:
        self.lib = lib
        config = new_config(lib)
        pool = lib.pooling_allocation_config_new()
        prefix = "pooling_allocation_config_"
        for name, value in (
            ("total_core_instances", slots),
            ("total_memories", slots),
            ("total_tables", slots * 2),
            ("total_stacks", slots),
            ("max_tables_per_module", MAX_TABLES),
            ("table_elements", 1 << 17),
            ("max_memory_size", MAX_MEMORY),
            ("linear_memory_keep_resident", KEEP_RESIDENT),
            ("table_keep_resident", TABLE_KEEP_RESIDENT),
        ):
            getattr(lib, f"{prefix}{name}_set")(pool, value)
        lib.pooling_allocation_strategy_set(config, pool)
        lib.pooling_allocation_config_delete(pool)
        self.ptr: int = lib.wasm_engine_new_with_config(config)
        if not self.ptr:
            raise EngineError("wasmtime could not make an engine")

    def increment_epoch(self) -> None:
        self.lib.engine_increment_epoch(self.ptr)

    def load(self, image: bytes) -> CompiledModule:
        """A module from its compiled image, which is native code: it must come from ourselves.

        Raises EngineError when the image is for another version, machine or configuration.
        """
        out = ctypes.c_void_p()
        error = self.lib.module_deserialize(self.ptr, image, len(image), ctypes.addressof(out))
        if error:
            raise EngineError(self.lib.take_error(error))
        assert out.value is not None
        return CompiledModule(self.lib, out.value)


class CompiledModule:
    def __init__(self, lib: Library, ptr: int) -> None:
        self._lib = lib
        self.ptr = ptr

    def imports(self) -> list[Import]:
        lib, found = self._lib, []
        vector = ByteVec()
        lib.module_imports(self.ptr, ctypes.addressof(vector))
        for item in _pointers(vector):
            module = _text(lib.wasm_importtype_module(item))
            name = _text(lib.wasm_importtype_name(item))
            found.append(Import(module, name, *self._type(lib.wasm_importtype_type(item))))
        lib.wasm_importtype_vec_delete(ctypes.addressof(vector))
        return found

    def exports(self) -> list[Export]:
        lib, found = self._lib, []
        vector = ByteVec()
        lib.module_exports(self.ptr, ctypes.addressof(vector))
        for item in _pointers(vector):
            name = _text(lib.wasm_exporttype_name(item))
            found.append(Export(name, *self._type(lib.wasm_exporttype_type(item))))
        lib.wasm_exporttype_vec_delete(ctypes.addressof(vector))
        return found

    def close(self) -> None:
        self._lib.module_delete(self.ptr)

    def _type(self, extern: int) -> tuple[str, Signature | None]:
        kind = KINDS.get(self._lib.wasm_externtype_kind(extern), "unknown")
        if kind != FUNC:
            return kind, None
        function = self._lib.wasm_externtype_as_functype_const(extern)
        params = self._values(self._lib.wasm_functype_params(function))
        return kind, (params, self._values(self._lib.wasm_functype_results(function)))

    def _values(self, vector: int) -> tuple[str, ...]:
        types = _pointers(ByteVec.from_address(vector))
        return tuple(VALUES.get(self._lib.wasm_valtype_kind(item), "ref") for item in types)


def _pointers(vector: ByteVec) -> Iterator[int]:
    if vector.size and vector.data:
        for index in range(vector.size):
            yield ctypes.c_void_p.from_address(vector.data + index * POINTER_SIZE).value or 0


def _text(vector: int) -> str:
    name = ByteVec.from_address(vector)
    raw = ctypes.string_at(name.data, name.size) if name.size and name.data else b""
    return raw.decode("utf-8", "replace")


def compile_module(lib: Library, source: bytes) -> bytes:
    """The compiled image of a module, given as a binary or as text. Takes as long as it takes.

    Raises EngineError with what is wrong and where.
    """
    wasm = source if source.startswith(b"\0asm") else _assemble(lib, source)
    engine = lib.wasm_engine_new_with_config(new_config(lib))
    module = ctypes.c_void_p()
    error = lib.module_new(engine, wasm, len(wasm), ctypes.addressof(module))
    if error:
        raise EngineError(lib.take_error(error))
    image = ByteVec()
    error = lib.module_serialize(module.value, ctypes.addressof(image))
    if error:
        raise EngineError(lib.take_error(error))
    assert image.data is not None
    return ctypes.string_at(image.data, image.size)


def _assemble(lib: Library, text: bytes) -> bytes:
    if not text.strip():
        raise EngineError("the file is empty")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise EngineError(
            "it is no WebAssembly: neither a binary, which begins with `\\0asm`, nor text"
        ) from None
    out = ByteVec()
    error = lib.wat2wasm(text, len(text), ctypes.addressof(out))
    if error:
        raise EngineError(lib.take_error(error))
    assert out.data is not None
    return ctypes.string_at(out.data, out.size)
