"""Puts the limits and restrictions on the calling process, between fork and the guest's first line.

A `Confinement` crosses the socket from the node to the launcher as JSON, so its fields are plain.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from dataclasses import dataclass, field

from . import landlock, seccomp, tree

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_PR_SET_CHILD_SUBREAPER, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 36, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What one new process may use; the default restricts nothing."""

    rlimits: dict[str, int] = field(default_factory=dict)
    """Name without `RLIMIT_` to hard limit, e.g. `{"NOFILE": 1024}`."""
    cgroups: tuple[str, ...] = ()
    """The files (`cgroup.procs` or `tasks`) to write oneself into."""
    drop_capabilities: bool = False
    no_new_privileges: bool = False
    landlock: bool = False
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    network: bool = True
    ports: tuple[int, ...] = ()
    """TCP ports that stay reachable without `network`."""
    seccomp: bool = False


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *padded):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def become_subreaper() -> None:
    """Orphans below the calling process become its children instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Ask the kernel for signal `number` when `parent`, the process that forked us, is gone."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the line above
        os.kill(os.getpid(), number)


def enter_cgroups(files: tuple[str, ...]) -> None:
    """Move the calling process, which has one thread, into the groups these files belong to."""
    for file in files:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)


def set_rlimits(limits: dict[str, int]) -> None:
    """Lower the named limits, hard and soft; a value above the present hard limit is cut to it."""
    for name, number in limits.items():
        value = number
        kind = getattr(resource, "RLIMIT_" + name)
        if name == "NPROC":  # the kernel counts all of the user's, here and elsewhere
            value += tree.tasks_of_user(os.getuid())
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            value = min(value, ceiling)
        resource.setrlimit(kind, (value, value))


def drop_capabilities() -> None:
    """Give up every capability for good; does nothing where there are none to give up."""
    for capability in range(_LAST_CAPABILITY + 1):
        with contextlib.suppress(OSError):  # unknown to this kernel, or none to begin with
            _prctl(_PR_CAPBSET_DROP, capability)
    with contextlib.suppress(OSError):
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, data):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def apply(confinement: Confinement) -> None:
    """Apply all of it to the calling, single-threaded process.

    Raises: OSError or ValueError when any part can't be applied; the caller must not go on.
    """
    enter_cgroups(confinement.cgroups)
    set_rlimits(confinement.rlimits)
    if confinement.drop_capabilities:
        drop_capabilities()
    if confinement.no_new_privileges:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if confinement.landlock:
        landlock.restrict(
            read=confinement.read,
            write=confinement.write,
            network=confinement.network,
            ports=confinement.ports,
        )
    if confinement.seccomp:
        seccomp.load(seccomp.program())
