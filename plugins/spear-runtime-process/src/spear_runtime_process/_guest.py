"""One guest process with its pipes, its group and its scratch directory, as one resource."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from spear_core.api import Artifact, ErrorInfo
from spear_core.errors import InstanceStartError
from spear_runtime_process._cgroup import Cgroup
from spear_runtime_process._inside import tree
from spear_runtime_process._launcher import Exit, Launcher, Process, signal_name
from spear_runtime_process._place import Place
from spear_runtime_process._plan import Bounds, Confiner, Plan
from spear_runtime_process._python import environment

_END_SECONDS = 10.0
_WATCH_SECONDS = 0.05
_numbers = itertools.count(1)


def _open_clear_refs(pid: int) -> int:
    """proc(5), /proc/pid/clear_refs: a 5 written there resets the greatest resident size."""
    try:
        return os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return -1


@attrs.frozen(kw_only=True)
class GuestSpec:
    """What to start, and how."""

    artifact: Artifact
    code: Place
    plan: Plan
    argv: tuple[str, ...] = ()
    """Program to execute; empty for an agent forked from the zygote."""
    agent: str = ""
    """`module:function` for the zygote to call."""
    env: dict[str, str] = attrs.field(factory=dict)
    channel: str = ""
    secrets: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Variables with the values of secrets; for the guest's eyes only."""


@attrs.define(eq=False, kw_only=True)
class Guest:
    """A guest that is running, or has ended and is not yet cleaned up."""

    name: str
    process: Process
    wrapped: bool
    """Whether the guest runs below another process that makes its namespaces."""
    bounds: Bounds
    stdout: trio.lowlevel.FdStream
    stderr: trio.lowlevel.FdStream
    _cgroup: Cgroup | None
    _report: int
    _reported: str = ""
    _over_cpu: float = 0.0
    _clear_refs: int | None = None
    """-1: the peak cannot be reset here."""

    def kill(self) -> None:
        """End it and all it started, now."""
        self.process.kill()
        if self._cgroup is not None:
            self._cgroup.kill()

    async def end(self) -> Exit:
        """Kill whatever is left and wait until all of it is gone.

        Cancellation: shielded, as long as it takes, with a deadline.
        """
        with trio.move_on_after(_END_SECONDS, shield=True):
            self.kill()
            if self._cgroup is not None:
                await self._cgroup.empty()
            return await self.process.wait()
        raise InstanceStartError(
            f"process {self.process.pid} does not end although it was killed; it may be blocked "
            "in the kernel on a file system or device"
        )

    def close(self) -> None:
        """Its descriptors are closed: their numbers may soon be another's and aren't used again."""
        self._report = -1
        if self._clear_refs is not None and self._clear_refs >= 0:
            os.close(self._clear_refs)
        self._clear_refs = -1
        self.process.close()

    def cpu_seconds(self) -> float:
        """What the tree has used so far."""
        if self._cgroup is not None and (used := self._cgroup.usage().cpu_seconds) is not None:
            return used
        pid = self.process.pid
        return tree.cpu_seconds([pid, *tree.descendants(pid)])

    def own_cpu_seconds(self) -> float | None:
        """What the guest's first process has used; one system call."""
        return None if self.wrapped else tree.own_cpu_seconds(self.pid)

    def memory_bytes(self) -> int | None:
        """What the tree has in memory now."""
        if self._cgroup is not None:
            return self._cgroup.usage().memory_bytes
        pid = self.process.pid
        return tree.memory([pid, *tree.descendants(pid)])

    def peak_memory_bytes(self) -> int | None:
        """The most the tree has had in memory, where that is counted."""
        return self._cgroup.usage().peak_memory_bytes if self._cgroup is not None else None

    def reset_peak_memory(self) -> None:
        """Let the guest's own peak begin anew, where the system allows it; about a microsecond.

        The SDK tells that peak. It may not write here itself where files are confined.
        """
        if self._clear_refs is None:
            self._clear_refs = -1 if self.wrapped else _open_clear_refs(self.pid)
        if self._clear_refs >= 0:
            with contextlib.suppress(OSError):  # it has ended
                os.write(self._clear_refs, b"5")

    async def watch_cpu(self, allowed: float | None) -> None:
        """Kill the guest once it has used so much more than now; return at once for None."""
        if allowed is None:
            return
        start = self.cpu_seconds()
        while (used := self.cpu_seconds() - start) <= allowed:
            await trio.sleep(max(_WATCH_SECONDS, (allowed - used) / 4))
        self._over_cpu = allowed
        self.kill()

    async def watch_memory(self) -> None:
        """Kill the whole guest when the kernel has killed a part of it for the memory limit.

        Returns at once where that needs no looking: version 2 groups do it by themselves.
        """
        if self._cgroup is None or self._cgroup.version == 2:
            return
        while not self._cgroup.out_of_memory():
            await trio.sleep(_WATCH_SECONDS)
        self.kill()

    def _read_report(self) -> tuple[str, str]:
        """What was reported so far: the guest's own process id, and what it exceeded.

        The guest and its monitor write a line each, in whatever order they get to it.
        """
        with contextlib.suppress(OSError):  # nothing there, or closed by now
            self._reported += os.read(self._report, 200).decode()
        lines = self._reported.split("\n")[:-1]
        pid = next((line for line in lines if line.isdecimal()), "")
        return pid, next((line for line in lines if not line.isdecimal()), "")

    @property
    def pid(self) -> int:
        """The guest's own process id, also where a monitor stands for it."""
        if not self.process.monitored:
            return self.process.pid
        pid = self._read_report()[0]
        return int(pid) if pid else self.process.pid

    def _broken_limit(self, said: str) -> ErrorInfo | None:
        """The limit for which the guest was ended, if it was one."""
        bounds = self.bounds
        reported = self._read_report()[1].partition(" ")[0]
        kind = "limit"
        if (
            reported == "memory"
            or (self._cgroup is not None and self._cgroup.out_of_memory())
            or (self.process.monitored and "MemoryError" in said)  # it met RLIMIT_DATA
        ):
            kind, text = "memory", f"memory limit of {bounds.memory / (1 << 20):g} MiB"
        elif reported == "processes":
            text = f"limit of {bounds.processes} processes"
        elif self._over_cpu:
            text = f"limit of {self._over_cpu:g} seconds of CPU time"
        else:
            return None
        message = f"{self.name} went over its {text} and was ended"
        return ErrorInfo(code="resource_exhausted", message=message, kind=kind)

    def explain(self, ended: Exit, said: str) -> ErrorInfo:
        """Why the guest ended as it did, when that was no success.

        Ask after its end; `said` are the last lines it wrote to stderr.
        """
        if broken := self._broken_limit(said):
            return broken
        message = f"{self.name} {ended}"
        if self._cgroup is not None and self._cgroup.forks_refused():
            message += f" after it tried to have more than {self.bounds.processes} processes"
        if ended.signal is None:
            details = {"exit_code": str(ended.code)}
            return ErrorInfo(code="unknown", message=message, kind="exit", details=details)
        name = signal_name(ended.signal)
        return ErrorInfo(code="unknown", message=message, kind="signal", details={"signal": name})


def memory_file(data: bytes) -> int:
    """A descriptor that reads these bytes, without anybody having to write them while it does."""
    descriptor = os.memfd_create("spear")
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _environment(spec: GuestSpec, scratch: Path) -> dict[str, str]:
    base = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
    }
    return base | environment() | dict(spec.artifact.env) | dict(spec.secrets) | spec.env


def _request(
    spec: GuestSpec, confiner: Confiner, scratch: Path, cgroup: Cgroup | None
) -> dict[str, Any]:
    entrances = cgroup.entrances if cgroup is not None else ()
    request = confiner.request(
        spec.plan, code=spec.code, scratch=scratch, entrances=entrances, channel=spec.channel
    )
    if spec.agent:
        return request | {"agent": spec.agent}
    argv = list(spec.argv)
    if spec.plan.namespaces:
        request["filter"] = True
        argv = confiner.in_namespaces(argv, code=spec.code, scratch=scratch, channel=spec.channel)
    return request | {"argv": argv}


@contextlib.asynccontextmanager
async def open_scratch(parent: Path) -> AsyncGenerator[Path]:
    """A fresh private directory, removed with all that is in it."""
    path = parent / str(next(_numbers))
    path.mkdir(mode=0o700, parents=True)
    try:
        yield path
    finally:
        try:
            path.rmdir()
        except OSError:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))


def _make_cgroup(spec: GuestSpec, confiner: Confiner) -> Cgroup | None:
    groups = confiner.machine.cgroups
    if groups is None or not spec.plan.cgroups:
        return None
    bounds = spec.plan.bounds if spec.plan.limits else None
    return groups.create(
        str(next(_numbers)),
        memory=bounds.memory if bounds else None,
        processes=bounds.processes if bounds else None,
    )


@attrs.frozen
class _Pipes:
    """Both ends of a guest's pipes; each side's are closed by that side's stack."""

    stdout: trio.lowlevel.FdStream
    stderr: trio.lowlevel.FdStream
    report: int
    theirs: tuple[int, int, int]

    @classmethod
    def make(cls, ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> _Pipes:
        """Raises: OSError, when there are too many open files."""
        reading, writing = [], []
        with contextlib.ExitStack() as unfinished:
            for _ in range(3):
                read, write = os.pipe2(os.O_CLOEXEC)
                reading.append(read)
                writing.append(write)
                unfinished.callback(os.close, read)
                theirs.callback(os.close, write)
            unfinished.pop_all()
        stdout, stderr = (trio.lowlevel.FdStream(read) for read in reading[:2])
        ours.callback(stdout.close)
        ours.callback(stderr.close)
        ours.callback(os.close, reading[2])
        os.set_blocking(reading[2], False)
        return cls(stdout, stderr, reading[2], (writing[0], writing[1], writing[2]))


@contextlib.asynccontextmanager
async def open_guest(
    launcher: Launcher, spec: GuestSpec, confiner: Confiner, *, scratch: Path, stdin: int
) -> AsyncGenerator[Guest]:
    """Start a guest; when the block ends, whichever way, nothing of it is left.

    `stdin` is closed as soon as the guest has it. Raises: InstanceStartError when it can't be
    started; that it could not execute its program shows in its exit.
    """
    async with contextlib.AsyncExitStack() as groups:
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            theirs.callback(os.close, stdin)
            try:
                cgroup = _make_cgroup(spec, confiner)
                if cgroup is not None:
                    groups.push_async_callback(_end_cgroup, cgroup)
                environment = memory_file(json.dumps(_environment(spec, scratch)).encode())
                theirs.callback(os.close, environment)
                pipes = _Pipes.make(ours, theirs)
            except OSError as exc:
                raise InstanceStartError(f"cannot start {spec.artifact.ref}: {exc}") from exc
            request = _request(spec, confiner, scratch, cgroup)
            output, errors, report = pipes.theirs
            descriptors = [stdin, output, errors, environment]
            if "monitor" in request:
                descriptors.append(report)
            process = await launcher.spawn(request, descriptors)
            theirs.close()
            guest = Guest(
                name=spec.artifact.ref,
                process=process,
                wrapped=spec.plan.namespaces,
                bounds=spec.plan.bounds,
                stdout=pipes.stdout,
                stderr=pipes.stderr,
                cgroup=cgroup,
                report=pipes.report,
            )
            ours.callback(guest.close)
            try:
                yield guest
            finally:
                await guest.end()


async def _end_cgroup(cgroup: Cgroup) -> None:
    with trio.move_on_after(_END_SECONDS, shield=True):
        await cgroup.end()
