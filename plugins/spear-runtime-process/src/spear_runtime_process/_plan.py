"""Decides how one artifact is confined here, and writes that down for the launcher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from spear_core.api import Artifact, IsolationLevel, Limits
from spear_core.errors import IsolationUnavailableError
from spear_runtime_process._config import ProcessConfig
from spear_runtime_process._inside.launcher import FILTER_DESCRIPTOR
from spear_runtime_process._machine import BWRAP_NAMESPACES, Machine
from spear_runtime_process._place import Place
from spear_runtime_process._python import places

T = TypeVar("T")

_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/opt",
    "/nix/store",
    "/run/systemd/resolve",
    "/run/resolvconf",
)
_KERNEL = ("/proc", "/sys")
_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))


@attrs.frozen(kw_only=True)
class Bounds:
    """The limits of one guest with the node's defaults filled in."""

    memory: int
    cpu: float | None
    files: int
    processes: int
    output: int

    @classmethod
    def of(cls, limits: Limits, config: ProcessConfig) -> Bounds:
        """An artifact's limits, and the configuration's where it has none."""

        def either(own: T | None, default: T) -> T:
            return default if own is None else own

        return cls(
            memory=either(limits.memory_bytes, config.memory_bytes),
            cpu=either(limits.cpu_seconds, config.cpu_seconds),
            files=either(limits.open_files, config.open_files),
            processes=either(limits.processes, config.processes),
            output=either(limits.output_bytes, config.output_bytes),
        )


@attrs.frozen(kw_only=True)
class Plan:
    """How the guests of one artifact are confined."""

    level: IsolationLevel
    bounds: Bounds
    limits: bool
    syscalls: bool
    namespaces: bool
    cgroups: bool
    """Whether a control group holds the tree; where not, a monitor process does."""


def make_plan(artifact: Artifact, config: ProcessConfig, machine: Machine) -> Plan:
    """Choose the layers: all that are required, and of the others those that cost little.

    Raises: IsolationUnavailableError naming what is missing and what helps.
    """
    auto = config.isolation == "auto"
    configured = IsolationLevel.LIMITS if auto else IsolationLevel[config.isolation.upper()]
    required = max(artifact.required_isolation or IsolationLevel.NONE, configured)
    if missing := machine.missing_for(required):
        who = artifact.ref
        if required > (artifact.required_isolation or IsolationLevel.NONE):
            who = "the configuration (`plugins.runtime-process.isolation`)"
        raise IsolationUnavailableError(
            f"{who} requires isolation level {required.name.lower()!r}, and this machine reaches "
            f"{machine.reachable.name.lower()!r}: {missing}"
        )
    limits = required >= IsolationLevel.LIMITS
    syscalls = machine.syscalls and (auto or required >= IsolationLevel.SYSCALLS)
    namespaces = required >= IsolationLevel.NAMESPACES
    cgroups = machine.cgroups is not None
    level = IsolationLevel.LIMITS if limits else IsolationLevel.NONE
    if namespaces:
        level = IsolationLevel.CGROUP if cgroups else IsolationLevel.NAMESPACES
    elif syscalls:
        level = IsolationLevel.SYSCALLS
    return Plan(
        level=level,
        bounds=Bounds.of(artifact.limits, config),
        limits=limits,
        syscalls=syscalls,
        namespaces=namespaces,
        cgroups=cgroups,
    )


@attrs.frozen(kw_only=True)
class Confiner:
    """Writes launcher requests for one configuration on one machine."""

    config: ProcessConfig
    machine: Machine

    def readable(self, place: Place) -> list[str]:
        """What a guest may read: the system, Python, its code, what the configuration adds."""
        own = [*places(), *place.readable(), *self.config.read]
        return list(dict.fromkeys([*_SYSTEM, *own]))

    def request(
        self, plan: Plan, *, code: Place, scratch: Path, entrances: Sequence[str], channel: str = ""
    ) -> dict[str, Any]:
        """The parts of a spawn request that confine."""
        confine: dict[str, Any] = {
            "rlimits": self._rlimits(plan),
            "cgroups": list(entrances),
        }
        if plan.syscalls and not plan.namespaces:
            confine |= {
                # bubblewrap drops them itself, and as root needs one to make its user namespace
                "drop_capabilities": self.machine.privileged,
                "no_new_privileges": True,
                "landlock": True,
                "seccomp": True,
                "read": [*self.readable(code), *_KERNEL],
                "write": [str(scratch), *_DEVICES, *self.config.write],
                "network": self.config.network,
                "ports": _port_of(channel),
            }
        request: dict[str, Any] = {"cwd": str(scratch), "confine": confine}
        if not plan.cgroups:
            unlimited = {"memory": None, "processes": None}
            bounds = {"memory": plan.bounds.memory, "processes": plan.bounds.processes}
            request["monitor"] = bounds if plan.limits else unlimited
        return request

    def _rlimits(self, plan: Plan) -> dict[str, int]:
        if not plan.limits:
            return {}
        limits = {"NOFILE": plan.bounds.files, "CORE": 0}
        if not plan.cgroups:
            # DATA and not AS: address space that is reserved and never used doesn't count
            limits |= {"DATA": plan.bounds.memory}
            if not self.machine.privileged:
                limits |= {"NPROC": plan.bounds.processes}
        return limits

    def in_namespaces(
        self, argv: Sequence[str], *, code: Place, scratch: Path, channel: str = ""
    ) -> list[str]:
        """The bubblewrap command line that runs `argv` in namespaces of its own."""
        assert self.machine.bwrap is not None
        line = [self.machine.bwrap, *BWRAP_NAMESPACES, "--unshare-cgroup-try"]
        line += ["--die-with-parent", "--cap-drop", "ALL"]
        line += ["--seccomp", str(FILTER_DESCRIPTOR)]
        if not self.config.network:
            line.append("--unshare-net")
        line += ["--tmpfs", "/tmp", "--ro-bind", "/sys", "/sys", "--proc", "/proc", "--dev", "/dev"]
        for place in sorted(self.readable(code)):  # parents come before what is below them
            line += ["--ro-bind-try", place, place]
        line += ["--bind", str(scratch), str(scratch)]
        for place in self.config.write:
            line += ["--bind-try", place, place]
        if channel.startswith("unix://"):
            socket = channel.removeprefix("unix://")
            line += ["--bind", socket, socket]
        return [*line, "--chdir", str(scratch), "--", *argv]


def _port_of(channel: str) -> list[int]:
    """The port of a `tcp://` address, which stays open to an agent without network."""
    if not channel.startswith("tcp://"):
        return []
    return [int(channel.rpartition(":")[2])]
