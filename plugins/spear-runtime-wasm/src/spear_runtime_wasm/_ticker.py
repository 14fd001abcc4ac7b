"""The epoch ticker: what makes a guest that computes give up the thread.

A thread of its own moves the engine's epoch on every `PERIOD`, while guests run; wasm code checks
it at every loop head and function entry. With no guest about, the thread sleeps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ._ffi import Engine

PERIOD = 0.001
"""Seconds of a time slice, and the most that a guest runs past its cancellation."""
LINGER = 50
"""Ticks without a guest before the thread goes to sleep: waking it costs more than a few ticks."""


class Poller:
    """One thread that polls guests. `busy` is set around each poll, by that thread alone."""

    __slots__ = ("busy", "clock", "polls")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        """Measures a slice: the thread's own processor time is exact, but ten times as dear."""
        self.busy = False
        self.polls = 0


class Ticker:
    """Ticks while any of its pollers is at work; started by the first one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pollers: list[Poller] = []
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._started = False
        self.asleep = True
        """A poller that sets `busy` and then reads True here must call `wake`."""

    def add_poller(self, clock: Callable[[], float]) -> Poller:
        poller = Poller(clock)
        with self._lock:
            self._pollers.append(poller)
        return poller

    def remove_poller(self, poller: Poller) -> None:
        with self._lock:
            self._pollers.remove(poller)

    def wake(self) -> None:
        with self._lock:
            self.asleep = False
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="spear-wasm-ticker", daemon=True).start()
        self._wake.set()

    def tick(self) -> None:
        """End every slice that is running now."""
        self._engine.increment_epoch()

    def _run(self) -> None:
        seen, quiet = -1, 0
        sleep, end_slices, pollers = time.sleep, self._engine.increment_epoch, self._pollers
        while True:
            sleep(PERIOD)
            end_slices()
            polls, busy = 0, False
            for poller in pollers:  # in few steps: whoever runs guests waits for the interpreter
                polls += poller.polls
                busy = busy or poller.busy
            quiet = quiet + 1 if polls == seen and not busy else 0
            seen = polls
            if quiet > LINGER:
                self._wake.clear()
                self.asleep = True  # from here on a poller that starts wakes us …
                if not self._anyone_busy():  # … and one that had started is seen here
                    self._wake.wait()
                self.asleep = False
                quiet = 0

    def _anyone_busy(self) -> bool:
        # of a copy: one that is removed meanwhile would have us skip the next one, and sleep
        return any(poller.busy for poller in tuple(self._pollers))
