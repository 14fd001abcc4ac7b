"""What this node has of cpu and memory for tasks that reserve some."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from spear_core.api import ExecutionConfig, Resources
from spear_core.errors import ResourceExhaustedError

__all__ = ["Capacity", "node_capacity"]

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


@attrs.frozen(kw_only=True)
class Capacity:
    """An amount of cpu and memory."""

    millicores: int = 0
    memory_bytes: int = 0

    @classmethod
    def of(cls, resources: Resources) -> Capacity:
        """What these resources reserve; nothing where they name nothing."""
        millicores = 0 if resources.cpu is None else max(1, round(resources.cpu * 1000))
        return cls(millicores=millicores, memory_bytes=resources.memory_bytes or 0)

    def check_room_for(self, wanted: Capacity, what: str) -> None:
        """Refuse a reservation that could never be met.

        :raises ResourceExhaustedError: not retryable; it says how much there is.
        """
        problems = []
        if wanted.millicores > self.millicores:
            problems.append(
                f"{wanted.millicores / 1000:g} cores, and this node has "
                f"{self.millicores / 1000:g} (execution.cpu)"
            )
        if wanted.memory_bytes > self.memory_bytes:
            problems.append(
                f"{wanted.memory_bytes} bytes of memory, and this node has "
                f"{self.memory_bytes} (execution.memory_bytes)"
            )
        if problems:
            raise ResourceExhaustedError(
                f"{what} reserves {' and '.join(problems)}; it can never run here",
                retryable=False,
            )


def node_capacity(
    config: ExecutionConfig, *, cgroups: Path = _CGROUPS, proc: Path = _PROC
) -> Capacity:
    """What the configuration says, else what the machine and our control group give."""
    limits = list(_groups(cgroups, proc))
    return Capacity(
        millicores=round(config.cpu * 1000)
        or min([len(os.sched_getaffinity(0)) * 1000, *map(_cpu_max, limits)]),
        memory_bytes=config.memory_bytes or min([_total_memory(proc), *map(_memory_max, limits)]),
    )


def _groups(cgroups: Path, proc: Path) -> list[Path]:
    """Our control group (version 2) and those above it."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        if line.startswith("0::"):
            group = cgroups / line[3:].strip().lstrip("/")
            return [path for path in (group, *group.parents) if path.is_relative_to(cgroups)]
    return []


_UNLIMITED = 1 << 62


def _cpu_max(group: Path) -> int:
    """``cpu.max`` is ``quota period`` in microseconds, or ``max period``."""
    words = _read(group / "cpu.max").split()
    if len(words) != 2 or words[0] == "max":
        return _UNLIMITED
    return max(1, int(words[0]) * 1000 // int(words[1]))


def _memory_max(group: Path) -> int:
    text = _read(group / "memory.max").strip()
    return int(text) if text.isdigit() else _UNLIMITED


def _total_memory(proc: Path) -> int:
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return _UNLIMITED


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
