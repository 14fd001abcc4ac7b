"""Control groups, version 1 or 2: what holds a guest's whole process tree, whatever it does.

Groups are made below the node's own group (`/proc/self/cgroup`), which is where it may make them
when anybody at all allows it to.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import attrs
import trio

PREFIX = "spear"
_NEEDED = ("memory", "pids")
_REMEDY = (
    "run the node as a systemd service with `Delegate=yes` (`systemd-run --user --scope "
    "-p Delegate=yes spear node`), or give its user the group's directory"
)


@attrs.frozen(kw_only=True)
class CgroupUsage:
    """What a group's processes have used."""

    cpu_seconds: float | None
    memory_bytes: int | None
    peak_memory_bytes: int | None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _keyed(path: Path, key: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


@attrs.frozen
class Cgroup:
    """One guest's group: a directory in each hierarchy in use."""

    version: int
    memory: Path
    pids: Path
    cpu: Path | None

    @property
    def directories(self) -> list[Path]:
        """Each directory once."""
        return list(dict.fromkeys(path for path in (self.memory, self.pids, self.cpu) if path))

    @property
    def entrances(self) -> list[str]:
        """The files into which a process with a single thread writes itself.

        A thread that moves only itself needs no global lock, for which it would often have to
        wait ten milliseconds and more; version 2 doesn't offer that.
        """
        name = "cgroup.procs" if self.version == 2 else "tasks"
        return [str(path / name) for path in self.directories]

    def set_limits(self, *, memory: int | None, processes: int | None) -> None:
        """Raises: OSError where the kernel refuses."""
        if processes is not None:
            (self.pids / "pids.max").write_text(str(processes))
        if memory is None:
            return
        if self.version == 2:
            (self.memory / "memory.max").write_text(str(memory))
            with contextlib.suppress(OSError):
                (self.memory / "memory.swap.max").write_text("0")
            with contextlib.suppress(OSError):
                (self.memory / "memory.oom.group").write_text("1")
        else:
            (self.memory / "memory.limit_in_bytes").write_text(str(memory))
            with contextlib.suppress(OSError):  # absent without swap accounting
                (self.memory / "memory.memsw.limit_in_bytes").write_text(str(memory))

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of the group for its memory limit."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _keyed(self.memory / name, "oom_kill") > 0

    def forks_refused(self) -> int:
        """How often a process could not be started because of the limit."""
        return _keyed(self.pids / "pids.events", "max")

    def usage(self) -> CgroupUsage:
        """Read the counters; a few dozen microseconds."""
        if self.version == 2:
            assert self.cpu is not None
            microseconds = _keyed(self.cpu / "cpu.stat", "usage_usec")
            return CgroupUsage(
                cpu_seconds=microseconds / 1e6,
                memory_bytes=_number(self.memory / "memory.current"),
                peak_memory_bytes=_number(self.memory / "memory.peak"),
            )
        nanoseconds = _number(self.cpu / "cpuacct.usage") if self.cpu else None
        return CgroupUsage(
            cpu_seconds=None if nanoseconds is None else nanoseconds / 1e9,
            memory_bytes=_number(self.memory / "memory.usage_in_bytes"),
            peak_memory_bytes=_number(self.memory / "memory.max_usage_in_bytes"),
        )

    def _members(self) -> list[int]:
        return [int(pid) for pid in _read(self.pids / "cgroup.procs").split()]

    def kill(self) -> bool:
        """Send SIGKILL to every member, once; True when there was any."""
        members = self._members()
        if members and self.version == 2:
            with contextlib.suppress(OSError):  # before Linux 5.14
                (self.pids / "cgroup.kill").write_text("1")
                return True
        if members:
            with contextlib.suppress(OSError):
                (self.pids / "pids.max").write_text("0")  # nobody forks away from the loop below
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return bool(members)

    async def empty(self) -> None:
        """Kill all members and wait until they are gone; the counters can still be read.

        Cancellation: members may be left; shield it, with a deadline.
        """
        delay = 0.0005
        while self.kill():
            await trio.sleep(delay)
            delay = min(delay * 2, 0.05)

    async def end(self) -> None:
        """Empty the group and remove it. Cancellation: as :meth:`empty`."""
        await self.empty()
        delay = 0.0005
        for directory in self.directories:
            while not _remove(directory):
                await trio.sleep(delay)
                delay = min(delay * 2, 0.05)


def _remove(directory: Path) -> bool:
    """Remove one group; False when a process that has died still holds it for a moment."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@attrs.frozen
class Cgroups:
    """A place below which this process can make groups that limit memory and processes."""

    version: int
    roots: Mapping[str, Path]
    """Controller (`memory`, `pids`, `cpu`) to directory."""

    def create(self, name: str, *, memory: int | None, processes: int | None) -> Cgroup:
        """Make a group. Raises: OSError, and then nothing of it is left."""
        own = f"{PREFIX}-{os.getpid()}-{name}"
        paths = {controller: root / own for controller, root in self.roots.items()}
        group = Cgroup(self.version, paths["memory"], paths["pids"], paths.get("cpu"))
        try:
            for directory in group.directories:
                directory.mkdir()
            group.set_limits(memory=memory, processes=processes)
        except OSError:
            for directory in group.directories:
                _remove(directory)
            raise
        return group

    def sweep(self) -> None:
        """Remove groups left by a node that was killed; their members have ended with it."""
        for root in set(self.roots.values()):
            for directory in root.glob(PREFIX + "-*-*"):
                if not Path("/proc", directory.name.split("-")[1]).exists():
                    _remove(directory)


def _mounts(mountinfo: str) -> dict[str, tuple[Path, str]]:
    """Controller, or `""` for version 2, to its mount point and the root that is mounted there."""
    mounts: dict[str, tuple[Path, str]] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        fields = left.split()
        if kind == "cgroup2":
            mounts[""] = (Path(fields[4]), fields[3])
        elif kind == "cgroup":
            for option in options.split(","):
                mounts.setdefault(option, (Path(fields[4]), fields[3]))
    return mounts


def _own_groups() -> dict[str, Path]:
    """Controller, or `""` for version 2, to the directory of this process's group."""
    mounts = _mounts(Path("/proc/self/mountinfo").read_text())
    groups: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in mounts:
                mount, root = mounts[controller]
                below = path.removeprefix(root) if root != "/" else path
                groups[controller] = mount / below.lstrip("/")
    return groups


def _enable_v2(own: Path, controllers: tuple[str, ...]) -> None:
    """Let groups below `own` use the controllers.

    A group with members can't do that, so where this process is the only member (a delegated
    group) it moves itself one level down first. Raises: OSError where it may not.
    """
    switch = own / "cgroup.subtree_control"
    missing = [name for name in controllers if name not in _read(switch).split()]
    if not missing:
        return
    order = " ".join("+" + name for name in missing)
    try:
        switch.write_text(order)
    except OSError:
        if _read(own / "cgroup.procs").split() != [str(os.getpid())]:
            raise
        leaf = own / "node"
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text("0")
        switch.write_text(order)


def _find(own: Mapping[str, Path]) -> Cgroups:
    if all(name in own for name in _NEEDED):
        roots = {name: own[name] for name in _NEEDED}
        if "cpuacct" in own:
            roots["cpu"] = own["cpuacct"]
        return Cgroups(1, roots)
    if "" not in own:
        raise OSError("no control groups are mounted")
    base = own[""]
    if base.name == "node" and not _read(base / "cgroup.subtree_control").split():
        base = base.parent
    available = _read(base / "cgroup.controllers").split()
    if missing := [name for name in _NEEDED if name not in available]:
        raise OSError(f"{base} has no controller {' and '.join(missing)}")
    _enable_v2(base, _NEEDED)
    return Cgroups(2, dict.fromkeys(("memory", "pids", "cpu"), base))


def find_cgroups() -> tuple[Cgroups | None, str]:
    """Where groups can be made, found by making one; or None, and why not and what helps."""
    try:
        groups = _find(_own_groups())
        probe = groups.create("probe", memory=1 << 26, processes=16)
        for directory in probe.directories:
            _remove(directory)
    except OSError as exc:
        return None, f"cannot make control groups ({exc}); {_REMEDY}"
    groups.sweep()
    where = ", ".join(sorted({str(path) for path in groups.roots.values()}))
    return groups, f"version {groups.version} below {where}"
