"""Host functions: how a guest's call reaches Python, and how it gets back.

Nothing raises through wasm and nothing waits inside a callback. A plain function computes its
answer at once. A waiting one only records what to do; the guest then lies suspended on its own
stack until whoever polls it has done the work (see `_guest`).
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._engine import CompiledModule, Engine, EngineError
from ._library import ASYNC_CALLBACK, CONTINUATION, HOST_CALLBACK, VAL_SIZE, ByteVec, Library

if TYPE_CHECKING:
    from ._guest import Guest

_KIND_NUMBERS = {"i32": 0, "i64": 1}
_RAW_FORMATS = {"i32": "i12x", "i64": "q8x"}
_VAL_FORMATS = {"i32": "8xi20x", "i64": "8xq16x"}
_CONTINUATION_FIELDS = struct.Struct("<QQQ")

HostFunction = Callable[..., int]
"""(guest, *arguments) -> result. A function without a result returns 0."""


class GuestStopError(Exception):
    """Raised by a host function to end the guest here and now; the guest cannot catch it."""


class Running(threading.local):
    """The guest that this thread is polling; set around each poll."""

    guest: Guest


running = Running()


class Linker:
    """What guests of one engine can import."""

    def __init__(self, engine: Engine) -> None:
        self._lib = engine.lib
        self._ptr: int = engine.lib.linker_new(engine.ptr)
        self._keep: list[object] = []
        self._lib.linker_allow_shadowing(self._ptr, True)
        self._resume = CONTINUATION(_resume)

    def define_wasi(self) -> None:
        """All of preview 1, as wasmtime implements it. Later definitions replace single ones."""
        error = self._lib.linker_define_wasi(self._ptr)
        if error:
            raise EngineError(self._lib.take_error(error))

    def define(
        self, module: str, name: str, params: tuple[str, ...], results: tuple[str, ...],
        function: HostFunction,
    ) -> None:  # fmt: skip
        """A function that answers at once."""
        unpack = struct.Struct("<" + "".join(_RAW_FORMATS[kind] for kind in params)).unpack
        size = 16 * len(params)
        cell: Any = ctypes.c_int64 if results == ("i64",) else ctypes.c_int32
        string_at, trap_new = ctypes.string_at, self._lib.trap_new

        def callback(env: int, caller: int, raw: int, slots: int) -> int | None:
            guest = running.guest
            guest.caller = caller
            try:
                result = function(guest, *unpack(string_at(raw, size)))
                if results:
                    cell.from_address(raw).value = result
            except Exception as exc:  # barrier: a raise would leave wasm with a garbage result
                guest.failure = exc
                return int(trap_new(b"host", 4))
            return None

        kept = HOST_CALLBACK(callback)
        self._define(self._lib.linker_define_func_unchecked, (module, name, params, results), kept)

    def define_waiting(
        self, module: str, name: str, params: tuple[str, ...], results: tuple[str, ...],
        function: Callable[..., object],
    ) -> None:  # fmt: skip
        """A function that may wait: `function(guest, *arguments)` returns what to wait for.

        What it returns becomes `guest.pending`, for the one that polls; an `int` is the answer at
        once.
        """
        unpack = struct.Struct("<" + "".join(_VAL_FORMATS[kind] for kind in params)).unpack
        size = VAL_SIZE * len(params)
        resume = ctypes.cast(self._resume, ctypes.c_void_p).value or 0
        fill = _CONTINUATION_FIELDS.pack(resume, 0, 0)
        wide = results == ("i64",)
        cell: Any = ctypes.c_int64 if wide else ctypes.c_int32

        def callback(
            env: int, caller: int, args: int, nargs: int, out: int, nresults: int,
            trap: int, continuation: int,
        ) -> None:  # fmt: skip
            ctypes.memmove(continuation, fill, len(fill))  # first: unset, it would end the process
            guest = running.guest
            guest.caller = caller
            guest.answer_at = out + 8 if nresults else 0
            guest.answer_type = cell
            try:
                pending = function(guest, *unpack(ctypes.string_at(args, size)))
                ctypes.memset(out, 0, VAL_SIZE * nresults)
                if wide:
                    ctypes.c_uint8.from_address(out).value = _KIND_NUMBERS["i64"]
                if isinstance(pending, int):
                    guest.answer(pending)
                else:
                    guest.pending = pending
            except Exception as exc:  # barrier: as above
                guest.failure = exc
                guest.pending = None
                ctypes.c_void_p.from_address(trap).value = self._lib.trap_new(b"host", 4)

        kept = ASYNC_CALLBACK(callback)
        self._define(self._lib.linker_define_async_func, (module, name, params, results), kept)

    def link(self, module: CompiledModule) -> int:
        """Resolve a module's imports once, for all its instances: a `wasmtime_instance_pre_t`.

        Raises EngineError naming the import that is missing or has another type.
        """
        out = ctypes.c_void_p()
        error = self._lib.linker_instantiate_pre(self._ptr, module.ptr, ctypes.addressof(out))
        if error:
            raise EngineError(self._lib.take_error(error))
        assert out.value is not None
        return out.value

    def _define(
        self,
        bind: Callable[..., int | None],
        shape: tuple[str, str, tuple[str, ...], tuple[str, ...]],
        callback: object,
    ) -> None:
        module, name, params, results = shape
        kind = _function_type(self._lib, params, results)
        where, what = module.encode(), name.encode()
        error = bind(self._ptr, where, len(where), what, len(what), kind, callback, None, None)
        self._lib.wasm_functype_delete(kind)
        self._keep.append(callback)
        if error:
            raise EngineError(self._lib.take_error(error))


def _resume(env: int | None) -> bool:
    """Asked by wasmtime at each poll of a suspended guest: may it go on?"""
    return running.guest.pending is None


def _function_type(lib: Library, params: tuple[str, ...], results: tuple[str, ...]) -> int:
    vectors = []
    for kinds in (params, results):
        types = [lib.wasm_valtype_new(_KIND_NUMBERS[kind]) for kind in kinds]
        array = (ctypes.c_void_p * len(types))(*types)
        vector = ByteVec()
        lib.wasm_valtype_vec_new(ctypes.addressof(vector), len(types), ctypes.addressof(array))
        vectors.append(vector)
    kind: int = lib.wasm_functype_new(*(ctypes.addressof(vector) for vector in vectors))
    return kind
