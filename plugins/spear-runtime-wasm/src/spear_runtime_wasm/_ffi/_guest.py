"""One store with one instance in it: memory, calls, and the future that is polled."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from ._engine import Engine
from ._library import EXTERN_SIZE, INSTANCE_SIZE, POINTER_SIZE, VAL_SIZE
from ._linker import running
from ._trap import take_failure, take_trap

MAX_ARGUMENTS = 2
MAX_RESULTS = 4
MAX_EXPORTS = 5

_INSTANCE = 0
_EXTERNS = _INSTANCE + INSTANCE_SIZE
_ARGUMENTS = _EXTERNS + EXTERN_SIZE * MAX_EXPORTS
_RESULTS = _ARGUMENTS + VAL_SIZE * MAX_ARGUMENTS
_TRAP = _RESULTS + VAL_SIZE * MAX_RESULTS
_ERROR = _TRAP + POINTER_SIZE
_SPARE = _ERROR + POINTER_SIZE
_FRAME_SIZE = _SPARE + EXTERN_SIZE
_EXTERN_MEMORY = 3

# The same places as indices of the frame seen as numbers.
_FIRST_I32 = (_ARGUMENTS + 8) // 4
_SECOND_I32 = _FIRST_I32 + VAL_SIZE // 4
_RESULT_I32 = (_RESULTS + 8) // 4
_RESULT_I64 = (_RESULTS + 8) // 8
_TRAP_I64 = _TRAP // 8
_ERROR_I64 = _ERROR // 8

_u32 = ctypes.c_uint32
_i32 = ctypes.c_int32
_memmove = ctypes.memmove
_string_at = ctypes.string_at


class _Frame:
    """Memory that wasmtime reads arguments from and writes results to; reused between guests."""

    __slots__ = ("arguments", "externs", "i32", "i64", "instance", "keep", "results", "trap")

    def __init__(self) -> None:
        self.keep = ctypes.create_string_buffer(_FRAME_SIZE)
        base = ctypes.addressof(self.keep)
        self.i32 = memoryview(self.keep).cast("B").cast("i")
        self.i64 = memoryview(self.keep).cast("B").cast("q")
        self.instance = base + _INSTANCE
        self.externs = tuple(base + _EXTERNS + EXTERN_SIZE * index for index in range(MAX_EXPORTS))
        self.arguments = base + _ARGUMENTS
        self.results = base + _RESULTS
        self.trap = base + _TRAP


_free_frames: list[_Frame] = []
_MAX_FREE_FRAMES = 256


class GuestMemoryError(Exception):
    """A range outside the guest's memory, or a guest without one."""


class GuestLimits(NamedTuple):
    memory_bytes: int
    table_elements: int


class Guest:
    """A store and, once instantiated, the instance in it. Used by one thread at a time.

    `begin_…` makes the future; `poll` runs the guest until it ends (True) or gives up the thread
    (False): in the second case either `pending` says what it waits for, and `answer` lets it go
    on, or it is None and the guest merely used up its time slice. `finish` collects the end.
    """

    __slots__ = (
        "_base", "_context", "_frame", "_future", "_lib", "_memory", "_memory_index", "_size",
        "_store", "answer_at", "answer_type", "caller", "failure", "host", "pending",
    )  # fmt: skip
    host: Any
    """Belongs to the one that defines host functions: they find their state here."""

    def __init__(self, engine: Engine, limits: GuestLimits) -> None:
        self._lib = lib = engine.lib
        self._frame = _free_frames.pop() if _free_frames else _Frame()
        self._store: int = lib.store_new(engine.ptr, None, None)
        self._context: int = lib.store_context(self._store)
        lib.store_limiter(self._store, limits.memory_bytes, limits.table_elements, 1, -1, 1)
        lib.context_epoch_deadline_async_yield_and_update(self._context, 1)
        lib.context_set_epoch_deadline(self._context, 1)
        self._future: int | None = None
        self._base = self._size = self._memory = 0
        self._memory_index = -1
        self.caller = 0
        self.answer_at = 0
        self.answer_type: type[ctypes.c_int32] | type[ctypes.c_int64] = _i32
        self.pending: object | None = None
        self.failure: Exception | None = None

    def set_wasi(self, args: tuple[bytes, ...], env: tuple[tuple[bytes, bytes], ...]) -> None:
        """Give it WASI's arguments and environment. No files, no inherited streams, no network."""
        lib = self._lib
        config = lib.wasi_config_new()
        if args:
            lib.wasi_config_set_argv(config, len(args), _strings(args))
        if env:
            names, values = zip(*env, strict=True)
            lib.wasi_config_set_env(config, len(env), _strings(names), _strings(values))
        error = lib.context_set_wasi(self._context, config)
        if error:
            raise take_failure(lib, error)

    def begin_instantiate(self, pre: int) -> None:
        frame = self._frame
        trap = frame.trap
        self._future = self._lib.instance_pre_instantiate_async(
            pre, self._context, frame.instance, trap, trap + 8
        )

    def find_exports(self, names: tuple[bytes, ...], *, memory: int) -> None:
        """Look up what will be used; `memory` is the index of the memory among them, or -1."""
        get, context, frame = self._lib.instance_export_get, self._context, self._frame
        instance = frame.instance
        for name, place in zip(names, frame.externs, strict=False):
            get(context, instance, name, len(name), place)
        self._memory_index, self._memory = memory, 0

    def begin_call(self, export: int, arguments: tuple[int, ...] = (), *, results: int) -> None:
        """Call the function at this index of `find_exports` with i32 arguments."""
        frame, count = self._frame, len(arguments)
        if count:
            frame.i32[_FIRST_I32] = arguments[0]
            if count > 1:
                frame.i32[_SECOND_I32] = arguments[1]
        trap = frame.trap
        self._future = self._lib.func_call_async(
            self._context, frame.externs[export] + 8,
            frame.arguments, count, frame.results, results, trap, trap + 8,
        )  # fmt: skip

    def poll(self) -> bool:
        """Run it until it ends or waits. May be called from any thread, one at a time."""
        running.guest = self
        return self._lib.call_future_poll(self._future)  # type: ignore[no-any-return]

    def answer(self, value: int) -> None:
        """The result of the waiting host function; the next poll goes on from there."""
        if self.answer_at:
            self.answer_type.from_address(self.answer_at).value = value
        self.pending = None

    def finish(self) -> None:
        """Collect the end of the future that `poll` said has ended.

        Raises what a host function raised, else GuestTrapError when the guest did not return.
        """
        self._lib.call_future_delete_ended(self._future)
        self._future = None
        words = self._frame.i64
        if not words[_TRAP_I64] and not words[_ERROR_I64]:
            return
        trap, error = words[_TRAP_I64], words[_ERROR_I64]
        words[_TRAP_I64] = words[_ERROR_I64] = 0
        found = take_trap(self._lib, trap) if trap else take_failure(self._lib, error)
        if self.failure is not None:
            raise self.failure from found
        raise found

    @property
    def result_i32(self) -> int:
        return self._frame.i32[_RESULT_I32]

    @property
    def result_i64(self) -> int:
        return self._frame.i64[_RESULT_I64]

    @property
    def memory_size(self) -> int:
        """Bytes of linear memory right now; 0 without one."""
        if self._size or self._memory_index >= 0:
            self._refresh()
        return self._size

    @property
    def known_memory_size(self) -> int:
        """The size when it was last looked at; safe to ask while another thread polls."""
        return self._size

    def read(self, pointer: int, length: int) -> bytes:
        """Raises GuestMemoryError for a range that is not inside the memory."""
        if pointer < 0 or length < 0 or pointer + length > self._size:
            self._check(pointer, length)
        return _string_at(self._base + pointer, length)

    def write(self, pointer: int, data: bytes) -> None:
        """Raises GuestMemoryError for a range that is not inside the memory."""
        length = len(data)
        if pointer < 0 or pointer + length > self._size:
            self._check(pointer, length)
        _memmove(self._base + pointer, data, length)

    def view(self, pointer: int, length: int) -> memoryview:
        """The memory itself, to be read and written while the guest lies still.

        Raises GuestMemoryError for a range that is not inside the memory.
        """
        if pointer < 0 or length < 0 or pointer + length > self._size:
            self._check(pointer, length)
        if not length:
            return memoryview(bytearray())
        return memoryview((ctypes.c_char * length).from_address(self._base + pointer)).cast("B")

    def read_u32(self, pointer: int) -> int:
        if pointer < 0 or pointer + 4 > self._size:
            self._check(pointer, 4)
        return _u32.from_address(self._base + pointer).value

    def write_u32(self, pointer: int, value: int) -> None:
        if pointer < 0 or pointer + 4 > self._size:
            self._check(pointer, 4)
        _u32.from_address(self._base + pointer).value = value

    def close(self) -> None:
        """End it, wherever it is: a suspended guest is unwound. It must not be in a poll."""
        if self._future is not None:
            self._lib.call_future_delete(self._future)
            self._future = None
        self._lib.store_delete(self._store)
        self._store = self._context = self._base = self._size = 0
        frame = self._frame
        words = frame.i64
        if words[_TRAP_I64] or words[_ERROR_I64]:  # of a future that was dropped, not finished
            if words[_TRAP_I64]:
                self._lib.wasm_trap_delete(words[_TRAP_I64])
            if words[_ERROR_I64]:
                self._lib.error_delete(words[_ERROR_I64])
            words[_TRAP_I64] = words[_ERROR_I64] = 0
        if len(_free_frames) < _MAX_FREE_FRAMES:
            _free_frames.append(frame)

    def _check(self, pointer: int, length: int) -> None:
        self._refresh()
        if pointer < 0 or length < 0 or pointer + length > self._size:
            raise GuestMemoryError(f"{length} bytes at {pointer} of {self._size}")

    def _refresh(self) -> None:
        """Read where the memory is and how large: it may have grown, it never moves or shrinks."""
        lib, frame = self._lib, self._frame
        if self._memory:
            self._size = lib.memory_data_size(self._context, self._memory)
            return
        if self._memory_index >= 0:
            item = frame.externs[self._memory_index]
        else:  # called from a start function, before `find_exports`
            item = frame.instance + _SPARE
            if not lib.caller_export_get(self.caller, b"memory", 6, item):
                raise GuestMemoryError("the module exports no memory")
        if ctypes.c_uint8.from_address(item).value != _EXTERN_MEMORY:
            raise GuestMemoryError("the export `memory` is not a memory")
        self._base = lib.memory_data(self._context, item + 8)
        self._size = lib.memory_data_size(self._context, item + 8)
        if self._memory_index >= 0:
            self._memory = item + 8


def _strings(values: tuple[bytes, ...]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(values))(*values)
