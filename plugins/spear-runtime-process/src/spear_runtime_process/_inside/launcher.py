"""The launcher: a small single-threaded process that forks guests for the node.

The node is large and has threads, so it must not fork. It sends a request per guest over a socket
pair; the launcher forks, confines the child and lets it run a program (`argv`) or, when it is a
zygote with the SDK already imported, a Python agent (`agent`) without starting an interpreter.

    node -> launcher  {"op": "spawn", "id": 1, "argv": [...], ..., "fds": n}  with stdin, stdout,
                      stderr, a file with the environment and, when there is a "monitor", the
                      pipe for its report
    launcher -> node  {"op": "started", "id": 1, "pid": 99, "fds": 1}  with a pidfd
                      {"op": "exited", "id": 1, "status": 0, "cpu": 0.01, "memory": 1048576, ...}

To `{"op": "ask", "id": 2, "fds": 0}` it answers with `{"op": "here", "id": 2, "fds": 0}`.

The environment comes as a file that only the child reads: a later child of the same zygote could
find the secrets of an earlier one in its memory otherwise. When the node's end closes, which is
also how its death shows, everything below is killed.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import resource
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import confine, monitor, seccomp, tree, wire

_MAX_ERROR = 4096
_IDLE_MS = 250
"""Quiet time before the first import of a zygote: who runs one short agent shall not pay for it."""
_ERRORS, _ENVIRONMENT, _REPORT = 3, 4, 5
FILTER_DESCRIPTOR = 6
"""Where a program finds the seccomp filter when the request asks for it (`"filter": true`)."""
_RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


@dataclass(kw_only=True)
class _Child:
    """A guest (or its monitor) that is running."""

    id: int
    errors: int
    """Pipe on which the child says why it could not start."""
    monitored: bool


class _ChildRole(Exception):  # noqa: N818 - not an error: unwinds the loop in the forked agent
    """Raised in a forked child that is to become an agent, with what to run."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__()
        self.run = run


def _confinement(request: dict[str, Any]) -> confine.Confinement:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in request["confine"].items()
    }
    return confine.Confinement(**fields)


def _take_descriptors(descriptors: list[int], errors: int) -> None:
    """Give all that is known here its number as listed above, and close everything else."""
    wanted = [*descriptors[:3], errors, *descriptors[3:]]
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10) for descriptor in wanted]
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, number, inheritable=number < _ERRORS)
    os.closerange(len(high), 1 + max(map(int, os.listdir("/proc/self/fd"))))


def _become(request: dict[str, Any], parent: int) -> dict[str, str]:
    """In the child: turn into the guest, or for an agent return its environment.

    Raises: whatever goes wrong; the child must then end.
    """
    signal.set_wakeup_fd(-1)
    for number in _RESET_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if limits := request.get("monitor"):
        confine.die_with_parent(parent, monitor.KILL_ALL)
        monitor.supervise(monitor.TreeLimits(**limits), _REPORT)
    else:
        os.setsid()
        confine.die_with_parent(parent)
    with open(_ENVIRONMENT, "rb") as file:
        environment: dict[str, str] = json.load(file)
    os.chdir(request["cwd"])
    os.umask(0o077)
    confine.apply(_confinement(request))
    if request.get("filter"):
        _offer_filter()
    if "argv" in request:
        os.execve(request["argv"][0], request["argv"], environment)
    return environment


def _offer_filter() -> None:
    """Leave the seccomp filter to the program we become, for it to load or to hand on."""
    memory = os.memfd_create("filter")
    os.write(memory, seccomp.program())
    os.lseek(memory, 0, os.SEEK_SET)
    os.dup2(memory, FILTER_DESCRIPTOR)
    os.set_inheritable(FILTER_DESCRIPTOR, True)


class Launcher:
    """Serves one node until its end of the connection closes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = wire.Reader(connection)
        self._children: dict[int, _Child] = {}
        self._doomed: set[int] = set()
        """Orphans that were killed and are not collected yet."""
        self._cgroup_dirs: deque[str] = deque(maxlen=4096)
        self._pid = os.getpid()

    def preload(self, name: str) -> None:
        """Import a module that agents will need; tell the node when that goes wrong."""
        try:
            importlib.import_module(name)
        except Exception as exc:  # barrier: a foreign module, and agents work without it
            self._send({"op": "notice", "id": 0, "text": f"preload {name}: {exc!r}"})
        if len(os.listdir("/proc/self/task")) > 1:
            text = f"preloading {name} started a thread; forks of such a process aren't safe"
            self._send({"op": "unfit", "id": 0, "text": text})

    def serve(self, preload: list[str]) -> None:
        """Fork guests on request and report their ends; return when the node is gone."""
        wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(wake, select.POLLIN)
        todo = deque(preload)
        patience = _IDLE_MS
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(patience if todo else None)]
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                self._reap()
            if self._connection.fileno() in ready:
                if not self._reader.receive():
                    return
                while item := self._reader.next():
                    self._handle(*item)
            if not ready and todo:
                patience = 0
                self.preload(todo.popleft())
                gc.freeze()

    def _send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        data = wire.pack(message | {"fds": len(descriptors)})
        ancillary = []
        if descriptors:
            rights = array.array("i", descriptors)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next read sees it
            sent = self._connection.sendmsg([data], ancillary)
            if sent < len(data):
                self._connection.sendall(data[sent:])

    def _handle(self, request: dict[str, Any], descriptors: list[int]) -> None:
        if request["op"] == "ask":
            self._send({"op": "here", "id": request["id"]})
        else:
            self._spawn(request, descriptors)

    def _spawn(self, request: dict[str, Any], descriptors: list[int]) -> None:
        failure, errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        pid = os.fork()
        if pid == 0:
            self._run_child(request, descriptors, errors)
        os.close(errors)
        for descriptor in descriptors:
            os.close(descriptor)
        self._children[pid] = _Child(
            id=request["id"],
            errors=failure,
            monitored="monitor" in request,
        )
        for entrance in request["confine"].get("cgroups", ()):
            self._cgroup_dirs.append(os.path.dirname(entrance))
        pidfd = os.pidfd_open(pid)
        self._send({"op": "started", "id": request["id"], "pid": pid}, (pidfd,))
        os.close(pidfd)

    def _run_child(self, request: dict[str, Any], descriptors: list[int], errors: int) -> None:
        try:
            _take_descriptors(descriptors, errors)
            environment = _become(request, self._pid)
        except BaseException as exc:  # barrier: a forked child must never return into the loop
            with contextlib.suppress(OSError):
                os.write(_ERRORS, f"{type(exc).__name__}: {exc}".encode()[:_MAX_ERROR])
            os._exit(127)
        os.close(_ERRORS)
        raise _ChildRole(lambda: _run_agent(request["agent"], environment))

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is None:  # an orphan of a guest
                if pid in self._doomed:
                    self._doomed.discard(pid)
                    self._kill_orphans()  # what it had started is ours only now
                continue
            if child.monitored and os.WIFSIGNALED(status):
                self._kill_orphans()  # in case it was the monitor itself that somebody killed
            try:
                error = os.read(child.errors, _MAX_ERROR).decode(errors="replace")
            except BlockingIOError:
                error = ""
            os.close(child.errors)
            self._send(
                {
                    "op": "exited",
                    "id": child.id,
                    "status": status,
                    "cpu": usage.ru_utime + usage.ru_stime,
                    "memory": usage.ru_maxrss * 1024,
                    "error": error,
                }
            )

    def _kill_orphans(self) -> None:
        """Kill what became a child of the launcher because its monitor is no more."""
        for pid in tree.children(self._pid):
            if pid not in self._children:
                self._doomed.add(pid)
                tree.kill_descendants(pid)
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill all guests and everything they started, and remove their cgroups."""
        signal.set_wakeup_fd(-1)
        tree.reap_all()
        for directory in self._cgroup_dirs:  # also of guests that ended and left something there
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def _run_agent(agent: str, environment: dict[str, str]) -> None:
    """In a forked child of the zygote: call the agent's `module:function`."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as in any Python program
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    gc.enable()
    os.environ.clear()
    os.environ.update(environment)
    module, _, name = agent.partition(":")
    sys.argv = [agent]
    sys.exit(getattr(importlib.import_module(module), name)())


def main(
    descriptor: int, first: list[str], later: list[str], open_files: int | None = None
) -> None:
    """Run the launcher on the socket with this descriptor.

    As a zygote it imports the modules `first` before it serves, and those in `later` one by one
    while it has nothing else to do. Modules that can't be imported are reported and skipped.
    `open_files` is the soft limit for it and its guests, if not the one it has.
    """
    if open_files is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if open_files <= hard or hard == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    connection = socket.socket(fileno=descriptor)
    confine.become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = Launcher(connection)
    for name in first:
        launcher.preload(name)
    if seccomp.available():
        seccomp.program()
    # A collection in a child would copy every page it looks at.
    gc.disable()
    gc.freeze()
    try:
        launcher.serve(later)
    except _ChildRole as role:
        connection.detach()
        agent = role.run
    else:
        launcher.end()
        return
    agent()
