"""What this process holds of the machine, read from /proc."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import attrs
import trio

__all__ = ["Resources"]

_LOOK_S = 0.02
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@attrs.frozen(kw_only=True)
class Resources:
    """Processes, threads and open files at one moment."""

    processes: frozenset[int]
    """Process ids of all descendants that are not zombies of ours."""
    threads: frozenset[str]
    """Names of Python's threads, without trio's idle workers."""
    files: int
    """Open file descriptors."""
    cpu_seconds: float
    """Used so far by this process and its living descendants."""

    @classmethod
    def now(cls) -> Resources:
        """Look."""
        below = _descendants()
        return cls(
            processes=frozenset(below),
            threads=frozenset(
                t.name for t in threading.enumerate() if not t.name.lower().startswith("trio")
            ),
            files=len(os.listdir("/proc/self/fd")),
            cpu_seconds=time.process_time() + sum(below.values()),
        )

    def more_than(self, before: Resources) -> list[str]:
        """What there is now and was not before, one line each."""
        lines = [f"process {_describe(pid)}" for pid in sorted(self.processes - before.processes)]
        lines += [f"thread {name!r}" for name in sorted(self.threads - before.threads)]
        if self.files > before.files:
            lines.append(f"{self.files - before.files} open file descriptors")
        return lines

    @classmethod
    async def settled(cls, before: Resources, *, seconds: float) -> list[str]:
        """What is left over ``before`` once things had ``seconds`` to settle."""
        for _ in range(int(seconds / _LOOK_S)):
            if not cls.now().more_than(before):
                return []
            await trio.sleep(_LOOK_S)
        return cls.now().more_than(before)


def _descendants() -> dict[int, float]:
    """Process id → cpu seconds."""
    parents: dict[int, tuple[int, float]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                spent = (int(fields[11]) + int(fields[12])) * _TICK_S
                parents[int(entry.name)] = (int(fields[1]), spent)
    found: dict[int, float] = {}
    level = {os.getpid()}
    while level:
        level = {pid for pid, (parent, _) in parents.items() if parent in level}
        found.update((pid, parents[pid][1]) for pid in level)
    return found


def _describe(pid: int) -> str:
    try:
        command = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        command = ""
    return f"{pid} {command.strip()}".strip()
