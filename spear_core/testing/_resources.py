"""What this process holds of the machine, read from /proc."""

from __future__ import annotations

import glob
import os
import threading
import time
from pathlib import Path

import attrs
import trio

__all__ = ["Resources", "busy_share", "least_busy_share"]

_LOOK_S = 0.02


@attrs.frozen(kw_only=True)
class Resources:
    """Processes, threads and open files at one moment."""

    processes: frozenset[int]
    """Process ids of all descendants that are not zombies of ours."""
    threads: frozenset[str]
    """Names of Python's threads, without trio's idle workers."""
    files: int
    """Open file descriptors."""

    @classmethod
    def now(cls) -> Resources:
        """Look."""
        return cls(
            processes=frozenset(_descendants()),
            threads=frozenset(
                t.name for t in threading.enumerate() if not t.name.lower().startswith("trio")
            ),
            files=len(os.listdir("/proc/self/fd")),
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


async def busy_share(*, samples: int = 12, pause: float = 0.04) -> float:
    """In what share of looks something of this process or its descendants was running.

    1.0 for one endless loop, however loaded the machine is, since it always wants to run; near 0
    when all is idle. The calling thread, which runs when anybody looks, counts as running when
    trio had no reason to wait since the look before; it counts by its cpu time, too, without what
    looking takes.
    """
    running, own, waits = 0, 0.0, _Waits()
    trio.lowlevel.add_instrument(waits)
    try:
        for _ in range(samples):
            begun, waits.seen = time.thread_time(), False
            await trio.sleep(pause)
            own += time.thread_time() - begun
            running += _wants_to_run() or not waits.seen
    finally:
        trio.lowlevel.remove_instrument(waits)
    return max(running / samples, own / (samples * pause))


async def least_busy_share(*, seconds: float, most: float = 0.5, samples: int = 12) -> float:
    """:func:`busy_share`, asked again for so many seconds until it is below ``most``.

    What goes on for ever is busy each time. On a loaded machine so is, for a while, what has a
    little left to do and waits for a processor.
    """
    until = trio.current_time() + seconds
    while (busy := await busy_share(samples=samples)) >= most:
        if trio.current_time() > until:
            break
    return busy


class _Waits(trio.abc.Instrument):
    """Whether there was a moment at which no task of trio could go on."""

    seen = False

    def before_io_wait(self, timeout: float) -> None:
        self.seen = self.seen or timeout > 0


def _wants_to_run() -> bool:
    me = f"/proc/{os.getpid()}/task/{threading.get_native_id()}"
    for pid in (os.getpid(), *_descendants()):
        for task in glob.glob(f"/proc/{pid}/task/*"):
            try:
                state = Path(task, "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state == "R" and task != me:
                return True
    return False


def _descendants() -> set[int]:
    """Process ids; zombies are nobody's any more."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found |= level
    return found


def _describe(pid: int) -> str:
    try:
        command = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        command = ""
    return f"{pid} {command.strip()}".strip()
