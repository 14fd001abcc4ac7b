"""Process trees read from /proc: who descends from whom, what they use, and how to end them all."""

from __future__ import annotations

import contextlib
import os
import signal
import time

_TICKS = os.sysconf("SC_CLK_TCK")
_OBJECT = b"/memfd:spear-object"
"""How the kernel shows what a store keeps objects in."""
_SHARED = (b"/memfd:", b"/dev/shm/", b"/dev/zero", b"/SYSV")
"""How it shows shared memory."""
_CHILDREN_FILE = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name (which may hold anything)."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (OSError, ValueError):
        return None


def _children_from_files(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb", buffering=0) as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def _children_by_parent() -> dict[int, list[int]]:
    table: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            table.setdefault(int(fields[1]), []).append(int(name))
    return table


def children(pid: int) -> list[int]:
    """Its children, living or unreaped."""
    return _children_from_files(pid) if _CHILDREN_FILE else _children_by_parent().get(pid, [])


def descendants(root: int) -> list[int]:
    """All living or unreaped processes below `root`, parents before children."""
    table = None if _CHILDREN_FILE else _children_by_parent()
    found: list[int] = []
    todo = [root]
    while todo:
        pid = todo.pop()
        below = _children_from_files(pid) if table is None else table.get(pid, [])
        found += below
        todo += below
    return found


def _memory(pid: int) -> int:
    total = 0
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    total += int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return total


def memory(pids: list[int]) -> int:
    """Bytes of anonymous and shared memory of these processes; files they map are not theirs."""
    return sum(map(_memory, pids))


def _own_memory(pid: int) -> int:
    total, counted = 0, b""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            for line in file:
                if line.startswith((b"Rss:", b"Anonymous:")):
                    total += int(line.split()[1]) * 1024 if line.startswith(counted) else 0
                elif b"-" in line.partition(b" ")[0]:  # a mapping's first line: where it lies
                    fields = line.split(maxsplit=5)
                    name = fields[5] if len(fields) > 5 else b""
                    if name.startswith(_OBJECT) and fields[1].startswith(b"r--"):
                        counted = b"nothing"
                    else:
                        counted = b"Rss:" if name.startswith(_SHARED) else b"Anonymous:"
    except (OSError, ValueError):
        pass
    return total


def own_memory(pids: list[int]) -> int:
    """Their :func:`memory` without the objects that they have mapped to read: these are the node's,
    whoever looks at them. Takes long: a file of some kilobytes for each process."""
    return sum(map(_own_memory, pids))


def own_cpu_seconds(pid: int) -> float | None:
    """What this process itself has used, exactly; None when it is gone. One system call."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # MAKE_PROCESS_CPUCLOCK of linux/posix-timers.h
    except OSError:
        return None


def cpu_seconds(pids: list[int]) -> float:
    """What these processes have used, with the children they have waited for."""
    total = 0.0
    for pid in pids:
        total += own_cpu_seconds(pid) or 0.0
        if fields := _stat(pid):
            total += (int(fields[13]) + int(fields[14])) / _TICKS
    return total


def tasks_of_user(user: int) -> int:
    """Processes and threads of this user, as RLIMIT_NPROC counts them."""
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == user and (fields := _stat(int(entry.name))):
                    total += int(fields[17])
    return total


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_descendants(root: int) -> None:
    """Kill everything below `root`, also what forks while we look.

    Stopping first and looking again until nothing new appears is what beats a fork bomb: a
    stopped process can't fork. Finds processes that left their session or whose parent died only
    where `root` is a subreaper.
    """
    stopped: set[int] = set()
    while new := [pid for pid in descendants(root) if pid not in stopped]:
        _signal(new, signal.SIGSTOP)
        stopped.update(new)
    _signal(sorted(stopped), signal.SIGKILL)


def reap_all() -> None:
    """Kill and wait for all descendants of the calling process, a subreaper, until none is left."""
    while True:
        kill_descendants(os.getpid())
        try:
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
