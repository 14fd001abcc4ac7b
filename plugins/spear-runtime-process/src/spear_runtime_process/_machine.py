"""What this machine offers for isolation, found out by trying it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

import attrs
import trio

from spear_core.api import IsolationLevel
from spear_runtime_process._cgroup import Cgroups, find_cgroups
from spear_runtime_process._inside import landlock, seccomp

BWRAP_NAMESPACES = ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts")


@attrs.frozen(kw_only=True)
class Machine:
    """What can be had here. Each `*_reason` says why not and what helps, or what was found."""

    landlock_abi: int
    seccomp: bool
    bwrap: str | None
    bwrap_reason: str
    cgroups: Cgroups | None
    cgroups_reason: str
    privileged: bool
    """Whether the node runs as root and so has capabilities to give up."""

    @property
    def syscalls(self) -> bool:
        """Whether files and system calls can be filtered."""
        return self.landlock_abi > 0 and self.seccomp

    @property
    def syscalls_reason(self) -> str:
        """What was found, or what is missing and what helps."""
        missing = []
        if not self.landlock_abi:
            missing.append("Landlock (Linux 5.13 or newer with `landlock` in the `lsm=` list)")
        if not self.seccomp:
            missing.append("seccomp filters (x86_64 or aarch64, CONFIG_SECCOMP_FILTER)")
        if missing:
            return f"the kernel has no {' and no '.join(missing)}"
        return f"Landlock ABI {self.landlock_abi}, seccomp"

    @property
    def reachable(self) -> IsolationLevel:
        """The highest level all of whose parts can be had."""
        if not self.syscalls:
            return IsolationLevel.LIMITS
        if not self.bwrap:
            return IsolationLevel.SYSCALLS
        return IsolationLevel.CGROUP if self.cgroups else IsolationLevel.NAMESPACES

    def missing_for(self, level: IsolationLevel) -> str:
        """What keeps this machine from the level and what helps; empty when nothing does."""
        missing = []
        if level >= IsolationLevel.SYSCALLS and not self.syscalls:
            missing.append(self.syscalls_reason)
        if level >= IsolationLevel.NAMESPACES and not self.bwrap:
            missing.append(self.bwrap_reason)
        if level >= IsolationLevel.CGROUP and not self.cgroups:
            missing.append(self.cgroups_reason)
        return "; ".join(missing)

    def details(self) -> Mapping[str, str]:
        """One line per layer, for `spear doctor`."""

        def line(works: bool, reason: str) -> str:
            return reason if works else f"not available: {reason}"

        tree = "control groups" if self.cgroups else "a monitor process per guest (polling)"
        return {
            "isolation": self.reachable.name.lower(),
            "limits": f"rlimits; process trees are held by {tree}",
            "syscalls": line(self.syscalls, self.syscalls_reason),
            "namespaces": line(self.bwrap is not None, self.bwrap_reason),
            "cgroup": line(self.cgroups is not None, self.cgroups_reason),
        }


async def _find_bwrap(command: str) -> tuple[str | None, str]:
    path = shutil.which(command)
    if path is None:
        return None, f"{command!r} is not installed (Debian and Fedora: package `bubblewrap`)"
    trial = [path, *BWRAP_NAMESPACES, "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    with trio.move_on_after(5):
        done = await trio.run_process(
            [*trial, "--", "/bin/sh", "-c", ":"],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode == 0:
            return path, path
        said = done.stdout.decode(errors="replace").strip() or f"exit code {done.returncode}"
        return None, (
            f"{path} does not work here ({said}); allow unprivileged user namespaces "
            "(sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
            ", user.max_user_namespaces)"
        )
    return None, f"{path} hangs"


async def look_around(*, bwrap: str, use_cgroups: bool) -> Machine:
    """Try every layer. Cancellation: safe."""
    bwrap_path, bwrap_reason = await _find_bwrap(bwrap)
    cgroups, cgroups_reason = (
        find_cgroups() if use_cgroups else (None, "switched off by `use_cgroups = false`")
    )
    return Machine(
        landlock_abi=landlock.abi(),
        seccomp=seccomp.available(),
        bwrap=bwrap_path,
        bwrap_reason=bwrap_reason,
        cgroups=cgroups,
        cgroups_reason=cgroups_reason,
        privileged=os.geteuid() == 0,
    )
