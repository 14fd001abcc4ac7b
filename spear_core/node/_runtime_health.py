"""Runtimes that are unwell: their tasks fail at once, and others go on."""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger

import trio

from spear_core.api import Health, Runtime
from spear_core.errors import RuntimeUnavailableError
from spear_core.node._background import Background
from spear_core.node._failures import as_spear_error

__all__ = ["RuntimeHealth"]

_PATIENCE_S = 5.0
_AGAIN_S = 1.0
"""Between two looks at a runtime that is unwell, and at least between two at one that is well."""


class RuntimeHealth:
    """Asks a runtime how it is after something of it broke, and until it is well again."""

    def __init__(
        self,
        current: Callable[[str], Runtime | None],
        background: Background,
        *,
        clock: Callable[[], float],
        log: Logger,
    ) -> None:
        self._current = current
        self._background = background
        self._clock = clock
        self._log = log
        self._unwell: dict[str, str] = {}
        self._looking: set[str] = set()
        self._looked_at: dict[str, float] = {}

    def check(self, name: str) -> None:
        """:raises RuntimeUnavailableError: this runtime has said that it cannot work now."""
        if self._unwell and (why := self._unwell.get(name)) is not None:
            raise RuntimeUnavailableError(
                f"the runtime {name!r} is unhealthy: {why}; it is asked again every second"
            )

    def suspect(self, name: str) -> None:
        """Something of this runtime broke: have a look, unless that was just done."""
        last = self._looked_at.get(name)
        if name not in self._looking and (last is None or self._clock() - last >= _AGAIN_S):
            self._looking.add(name)
            self._background.start_soon(self._watch, name)

    async def _watch(self, name: str) -> None:
        try:
            while (why := await self._ask(name)) is not None:
                if name not in self._unwell:
                    self._log.warning("the runtime %s is unhealthy: %s", name, why)
                self._unwell[name] = why
                await trio.sleep(_AGAIN_S)
        finally:
            if self._unwell.pop(name, None) is not None:
                self._log.info("the runtime %s is healthy again", name)
            self._looking.discard(name)
            self._looked_at[name] = self._clock()

    async def _ask(self, name: str) -> str | None:
        """Why it cannot work; ``None``: it can, or it is closed and the next use opens it."""
        runtime = self._current(name)
        if runtime is None:
            return None
        try:
            with trio.fail_after(_PATIENCE_S):
                found = await runtime.fingerprint()
        except trio.TooSlowError:
            return f"it did not say how it is within {_PATIENCE_S:g} s"
        except Exception as raised:  # barrier: one runtime
            return as_spear_error(raised, f"runtime {name}", self._log).message
        return None if found.health is Health.HEALTHY else found.message or found.health.value
