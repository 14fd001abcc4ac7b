"""What this process uses: CPU time and memory, by execution."""

from __future__ import annotations

import contextlib
import os
import resource

__all__ = ["Usage"]

_RESET_PEAK = b"5"
"""proc(5), /proc/pid/clear_refs: begin anew with the greatest resident size. Takes about 1 us."""


class Usage:
    """Measures one execution after the other.

    After an ``exec`` the kernel never tells less than what the process had before it; workers are
    forked from a zygote, where that does not apply.
    """

    def __init__(self) -> None:
        self._cpu_seconds = 0.0
        try:
            self._clear_refs = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:  # a sandbox without a writable /proc
            self._clear_refs = -1

    def restart(self) -> None:
        """An execution begins. Where the peak cannot be reset, it is that of the process's life."""
        if self._clear_refs >= 0:
            with contextlib.suppress(OSError):  # the function's code may have closed it
                os.write(self._clear_refs, _RESET_PEAK)

    def take(self) -> tuple[float, int]:
        """CPU seconds since this was last asked, and the peak of resident bytes since
        :meth:`restart`."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        spent, self._cpu_seconds = cpu_seconds - self._cpu_seconds, cpu_seconds
        return spent, usage.ru_maxrss * 1024
