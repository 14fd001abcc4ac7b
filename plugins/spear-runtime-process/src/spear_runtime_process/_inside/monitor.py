"""The process between the launcher and a guest where no cgroup can hold the guest's whole tree.

It is the subreaper of everything the guest starts, so nothing escapes it by `setsid` or a double
fork; it looks at the tree every few hundredths of a second and ends it when it takes too much.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass

from . import confine, tree

_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR2}
KILL_ALL = signal.SIGUSR2
"""Sent to the monitor: end the guest and all it started, now. (SIGTERM is passed to the guest.)"""


@dataclass(frozen=True, kw_only=True)
class TreeLimits:
    """What the tree may use together; None is no limit."""

    memory: int | None = None
    processes: int | None = None
    interval: float = 0.05


def _exceeded(limits: TreeLimits) -> str | None:
    pids = tree.descendants(os.getpid())
    if limits.processes is not None and len(pids) > limits.processes:
        return f"processes {len(pids)}"
    if limits.memory is not None and tree.memory(pids) > limits.memory:
        used = tree.own_memory(pids)
        if used > limits.memory:
            return f"memory {used}"
    return None


def _reap(guest: int) -> int | None:
    """Collect what has ended; the guest's wait status if it is among them."""
    status: int | None = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == guest:
                status = ended
    return status


def _watch(guest: int, limits: TreeLimits, report: int) -> int:
    """Wait for the guest's end, holding it to its limits; its wait status."""
    while True:
        received = signal.sigtimedwait(_SIGNALS, limits.interval)
        if received is None:
            if reason := _exceeded(limits):
                os.write(report, f"{reason}\n".encode())
                tree.kill_descendants(os.getpid())
        elif received.si_signo == signal.SIGTERM:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(guest, signal.SIGTERM)
        elif received.si_signo == KILL_ALL:
            tree.kill_descendants(os.getpid())
        if (status := _reap(guest)) is not None:
            return status


def _end_like(status: int) -> None:
    """End the calling process with the guest's own exit code or signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def supervise(limits: TreeLimits, report: int) -> None:
    """Fork; return in the child, the guest to be. The parent stays as its monitor and ends with it.

    `report`, the highest open descriptor, gets a line with the guest's process id, and another
    with what was exceeded, if anything was. The guest writes its own, so that it is there before
    anything else of the guest can be seen: the monitor may have to wait for a processor first.
    The monitor closes all below it, so that the guest's pipes end when the guest does.
    """
    confine.become_subreaper()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    own = os.getpid()
    guest = os.fork()
    if guest == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.write(report, f"{os.getpid()}\n".encode())
        os.close(report)
        os.setsid()
        confine.die_with_parent(own)
        return
    os.closerange(0, report)
    with contextlib.suppress(OSError):  # against a fork bomb, where we may
        os.nice(-10)
    status = _watch(guest, limits, report)
    tree.reap_all()
    _end_like(status)
