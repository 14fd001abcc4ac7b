"""The engine of this process with everything defined that a guest may import."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading

from ._ffi import Engine, Linker, load_library, possible_slots
from ._hostcalls import define_hostcalls
from ._streams import define_streams
from ._ticker import Ticker
from ._wasi import define_wasi


class Host:
    """With room for up to `wanted` live instances; `slots` says for how many."""

    def __init__(self, wanted: int) -> None:
        # wasmtime's signal handlers must come last: a handler put over them would take an
        # out-of-bounds access of a guest for a crash of ours.
        if not faulthandler.is_enabled() and sys.__stderr__ is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                faulthandler.enable(sys.__stderr__)
        self.slots = possible_slots(wanted)
        self.engine = Engine(load_library(), slots=self.slots)
        self.linker = Linker(self.engine)
        define_wasi(self.linker)
        define_hostcalls(self.linker)
        self.stream_linker = Linker(self.engine)
        define_wasi(self.stream_linker)
        define_hostcalls(self.stream_linker)
        define_streams(self.stream_linker)
        self.ticker = Ticker(self.engine)


_hosts: dict[int, Host] = {}
_lock = threading.Lock()


def get_host(slots: int) -> Host:
    """The host with this pool size; made once and kept while the process lives.

    Raises ImportError or OSError when wasmtime's library is not usable, EngineError when the pool
    cannot be reserved.
    """
    with _lock:
        if slots not in _hosts:
            _hosts[slots] = Host(slots)
        return _hosts[slots]
