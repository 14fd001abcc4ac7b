"""The node's side of the launcher: start guests through it and learn how they ended."""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import IO, Any

import attrs
import trio

from spear_core.errors import InstanceStartError
from spear_runtime_process._inside import monitor, wire
from spear_runtime_process._nursery import open_service_nursery
from spear_runtime_process._python import import_path

_PACKAGE_ROOT = str(Path(__file__).resolve().parent.parent)
_PROGRAM = (
    "import sys, json; a = json.loads(sys.argv[1]); sys.path.insert(0, a['package']); "
    "from spear_runtime_process._inside.launcher import main; del sys.path[0]; "
    "sys.path.extend(path for path in a['path'] if path not in sys.path); "
    "main(a['descriptor'], a['first'], a['later'], a['open_files'])"
)
_CLOSE_SECONDS = 10.0
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TZ")


@attrs.frozen(kw_only=True)
class Exit:
    """How a process ended."""

    code: int | None
    """Exit code, or None when a signal ended it."""
    signal: int | None
    cpu_seconds: float | None = None
    """Of the process and the children it waited for."""
    peak_memory_bytes: int | None = None
    start_error: str = ""
    """Why it could not become what it was to be; empty when it could."""

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Exit:
        """From what the launcher reports."""
        code = os.waitstatus_to_exitcode(message["status"])
        return cls(
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            cpu_seconds=message["cpu"],
            peak_memory_bytes=message["memory"],
            start_error=message["error"],
        )

    def __str__(self) -> str:
        if self.signal is not None:
            return f"was ended by signal {signal_name(self.signal)}"
        return f"ended with exit code {self.code}"


UNKNOWN_EXIT = Exit(code=None, signal=signal.SIGKILL)
"""For a process whose launcher died before it could tell; it was killed with its launcher."""


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; the number itself where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


@attrs.define(eq=False)
class Process:
    """One guest process, or the monitor that stands for it, as long as the node cares."""

    pid: int
    pidfd: int
    monitored: bool
    _gone: trio.Event
    exit: Exit | None = None

    def _send_signal(self, number: int) -> None:
        if self.exit is None and self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.pidfd, number)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now; where a monitor stands for it, with all it has started."""
        self._send_signal(monitor.KILL_ALL if self.monitored else signal.SIGKILL)

    async def wait_dead(self) -> None:
        """Wait until the process is dead; its exit status may still be under way."""
        if self.exit is None:
            await trio.lowlevel.wait_readable(self.pidfd)

    async def wait(self) -> Exit:
        """Wait until it is dead and the launcher has said how."""
        await self._gone.wait()
        assert self.exit is not None
        return self.exit

    def close(self) -> None:
        """Give back the pidfd."""
        pidfd, self.pidfd = self.pidfd, -1
        os.close(pidfd)


@attrs.define(eq=False)
class _Pending:
    gone: trio.Event = attrs.field(factory=trio.Event)
    started: trio.Event = attrs.field(factory=trio.Event)
    monitored: bool = False
    process: Process | None = None


class Launcher:
    """A running launcher process. Made by :func:`open_launcher`."""

    def __init__(
        self, connection: socket.socket, process: subprocess.Popen[bytes], log: logging.Logger
    ) -> None:
        self._log = log
        self._connection = connection
        self._reader = wire.Reader(connection)
        self._process = process
        self._pending: dict[int, _Pending] = {}
        self._sending = trio.Lock()
        self._last_id = 0
        self._asking = trio.Lock()
        self._answer: trio.Event | None = None
        """Set when it answers to being asked whether it serves; ``None``: it has."""
        self._unfit = trio.Event()
        self.unfit = ""
        """Why it must not be used any more; empty while it may."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def spawn(self, request: dict[str, Any], descriptors: Sequence[int]) -> Process:
        """Start a guest with these as stdin, stdout, stderr, environment (and monitor's report).

        The descriptors stay the caller's to close. Raises: InstanceStartError when the launcher
        is gone. Cancellation: a guest that was started nevertheless is killed.
        """
        self._last_id += 1
        number = self._last_id
        pending = self._pending[number] = _Pending(monitored="monitor" in request)
        message = request | {"op": "spawn", "id": number, "fds": len(descriptors)}
        try:
            await self._send(wire.pack(message), descriptors)
        except (trio.Cancelled, InstanceStartError):
            self._pending.pop(number, None)
            raise
        try:
            await pending.started.wait()
        except trio.Cancelled:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await pending.started.wait()
                if pending.process is not None:
                    pending.process.kill()
                    await pending.process.wait()
                    pending.process.close()
            raise
        if pending.process is None:
            gone = f"the launcher of processes is gone: {self.unfit}"
            raise InstanceStartError(gone, retryable=True)  # the next one has a new launcher
        return pending.process

    async def wait_serving(self) -> None:
        """Ask whether it serves, and wait for the answer.

        Raises: InstanceStartError when it is gone. Cancellation: who comes next waits for the
        same answer, so one that is silent is never asked more than once.
        """
        async with self._asking:
            if self._answer is None:
                self._last_id += 1
                await self._send(wire.pack({"op": "ask", "id": self._last_id, "fds": 0}), ())
                self._answer = trio.Event()
            await self._answer.wait()
        if self.unfit:
            raise InstanceStartError(f"the launcher of processes is gone: {self.unfit}")

    async def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        """Whole or not at all. Raises: InstanceStartError when the launcher is gone."""
        rights = []
        if descriptors:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        if self.unfit:
            raise InstanceStartError(f"the launcher of processes is gone: {self.unfit}")
        async with self._sending:
            with trio.CancelScope(shield=True):
                while data:
                    try:
                        sent = self._connection.sendmsg([data], rights)
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self._connection)
                    except OSError as exc:
                        raise InstanceStartError(f"the launcher is gone: {exc}") from exc
                    else:
                        data, rights = data[sent:], []

    async def receive(self) -> None:
        """Take in what the launcher reports until its end; run by :func:`open_launcher`."""
        open_ = True
        while open_:
            try:
                open_ = self._reader.receive()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._connection)
                continue
            while item := self._reader.next():
                self._handle(*item)

    def _handle(self, message: dict[str, Any], descriptors: list[int]) -> None:
        match message["op"]:
            case "started":
                pending = self._pending[message["id"]]
                pending.process = Process(
                    message["pid"], descriptors[0], pending.monitored, pending.gone
                )
                pending.started.set()
            case "exited":
                pending = self._pending.pop(message["id"])
                if pending.process is not None:
                    pending.process.exit = Exit.from_message(message)
                pending.gone.set()
            case "here":
                self._answered()
            case "notice":
                self._log.warning("%s", message["text"])
            case "unfit":
                self._retire(message["text"])

    def _retire(self, reason: str) -> None:
        self.unfit = self.unfit or reason
        self._unfit.set()

    def _answered(self) -> None:
        if self._answer is not None:
            self._answer.set()
            self._answer = None

    async def wait_unfit(self) -> None:
        """Wait until it must not be used any more; `unfit` then says why."""
        await self._unfit.wait()

    def end(self, said: str) -> None:
        """Nothing more comes from it; `said` is what it wrote to stderr."""
        self._retire(said.splitlines()[-1] if said else "it ended unexpectedly")
        for pending in self._pending.values():
            if pending.process is not None:
                pending.process.exit = UNKNOWN_EXIT
            pending.started.set()
            pending.gone.set()
        self._pending.clear()
        self._answered()

    async def wait_ended(self) -> None:
        """Wait until the launcher process has ended, and collect it."""
        if self._process.returncode is not None:
            return
        pidfd = os.pidfd_open(self._process.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        self._process.wait()


def _start(
    connection: socket.socket,
    first: Sequence[str] | None,
    later: Sequence[str],
    *,
    errors: IO[bytes],
    open_files: int | None,
) -> subprocess.Popen[bytes]:
    """Run the launcher's interpreter; inline, because the signal that the kernel sends at the
    death of a parent goes by thread: a worker thread would take the launcher with it."""
    isolation = ["-I", "-X", "utf8"] + (["-S"] if first is None else [])
    descriptor = connection.fileno()
    arguments = {
        "descriptor": descriptor,
        "package": _PACKAGE_ROOT,
        "path": [] if first is None else import_path(),
        "first": list(first or ()),
        "later": list(later),
        "open_files": open_files,
    }
    # forked agents could read it in /proc/self/environ: nothing of the node's own may be in it
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return subprocess.Popen(
        [sys.executable, *isolation, "-c", _PROGRAM, json.dumps(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=environment,
        pass_fds=[descriptor],
        start_new_session=True,
    )


@contextlib.asynccontextmanager
async def open_launcher(
    log: logging.Logger,
    *,
    first: Sequence[str] | None = None,
    later: Sequence[str] = (),
    open_files: int | None = None,
) -> AsyncGenerator[Launcher]:
    """Run a launcher while the block lasts; its guests end with it.

    With `first` it is a zygote: it has site-packages, imports these modules before it serves and
    those in `later` when it is idle. It is usable at once: requests wait for it.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with tempfile.TemporaryFile() as errors, ours:
        with theirs:
            process = _start(theirs, first, later, errors=errors, open_files=open_files)
        launcher = Launcher(ours, process, log)
        async with open_service_nursery() as nursery:
            receiving = trio.CancelScope(shield=True)

            async def receive() -> None:
                with receiving:
                    await launcher.receive()
                    errors.seek(0)
                    launcher.end(errors.read().decode(errors="replace").strip())

            nursery.start_soon(receive)
            try:
                yield launcher
            finally:
                with contextlib.suppress(OSError):
                    ours.shutdown(socket.SHUT_WR)
                with trio.move_on_after(_CLOSE_SECONDS, shield=True) as closing:
                    await launcher.wait_ended()
                if closing.cancelled_caught:
                    process.kill()
                    process.wait()
                receiving.deadline = trio.current_time() + 1  # it ends at the end of the stream
