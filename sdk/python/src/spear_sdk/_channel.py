"""The worker's end of its channel: who reads, who waits, who is told.

The main thread reads the socket while it has nothing else to do, so an execution costs no switch
between threads. While user code runs, a second thread watches the socket through an epoll set that
is armed only then, and answers health checks, takes cancellations and sees the node's death.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading

from spear_sdk import _frames as f
from spear_sdk._msgpack import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["WorkerChannel", "connect"]

_ARMED = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
_DISARMED = select.EPOLLONESHOT
_EMPTY = pack({})


def connect(address: str) -> socket.socket:
    """Connect to ``unix:///path`` or ``tcp://host:port``.

    Raises: ValueError for another form, OSError.
    """
    if address.startswith("unix://"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.removeprefix("unix://"))
        return connection
    if address.startswith("tcp://"):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        connection = socket.create_connection((host.strip("[]"), int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    raise ValueError(f"{address!r} is neither unix:///PATH nor tcp://HOST:PORT")


class WorkerChannel:
    """Frames in and out, and the watch over the socket while user code runs.

    :param on_frame: takes every frame that is not about the connection itself; called by whoever
        reads, so it must be quick.
    """

    def __init__(self, connection: socket.socket, on_frame: Callable[[f.Frame], None]) -> None:
        connection.settimeout(None)
        self._connection = connection
        self._on_frame = on_frame
        self._reader = f.FrameReader(connection)
        self._writer = f.FrameWriter(connection)
        self._lock = threading.Lock()
        """Held by whoever changes `_watched`, and by the watcher while it reads."""
        self._watched = False
        self._epoll = select.epoll()
        self._epoll.register(connection, _DISARMED)
        self._arrival = select.poll()
        self._arrival.register(connection, select.POLLIN)

    @property
    def max_payload(self) -> int:
        """The largest payload the node takes."""
        return self._reader.max_frame - (64 << 10)

    @property
    def passes_fds(self) -> bool:
        """Whether requests and answers may bring file descriptors."""
        return self._reader.passes_fds

    def take_fd(self) -> f.Descriptor | None:
        """The file descriptor of the frame that is being handled."""
        return self._reader.fd

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._connection.fileno()

    def handshake(self, hello: dict[str, object]) -> None:
        """Introduce this worker and wait to be welcomed.

        Raises: ConnectionError when the node hangs up instead, OSError when the limits leave
        nothing to work with, ProtocolError.
        """
        if self._connection.family == socket.AF_UNIX:
            hello = hello | {"fds": True}
        self._writer.send(f.HELLO, 0, pack(hello))
        while (frame := self._reader.next()) is None:
            if not self._reader.fill():
                raise ConnectionRefusedError("the node hung up on this worker's HELLO")
        if frame[0] != f.WELCOME:
            raise f.ProtocolError(f"the node answered HELLO with a frame of kind {frame[0]}")
        welcome: Any = unpack(frame[3])
        self._reader.max_frame = welcome.get("max_frame") or self._reader.max_frame
        self._reader.passes_fds = bool(welcome.get("fds"))
        watcher = threading.Thread(target=self._watch, name="spear-watcher", daemon=True)
        try:
            watcher.start()
        except RuntimeError as exc:
            raise OSError(f"{exc}; the limit of memory or processes is too small") from exc
        self._handle()  # what came in one piece with the WELCOME

    def send(
        self, kind: int, number: int, head: bytes = b"", payload: f.Buffer = b"", flags: int = 0
    ) -> None:
        """Send one message, from any thread. Ends the process when the node is gone."""
        try:
            self._writer.send(kind, number, head, payload, flags)
        except OSError:
            self._node_is_gone()

    def send_with_fd(self, number: int, head: bytes, payload: bytes, fd: int) -> None:
        """Send a request with a file descriptor, from any thread; else as :meth:`send`."""
        try:
            self._writer.send_with_fd(number, head, payload, fd)
        except OSError:
            self._node_is_gone()

    def read(self) -> None:
        """Wait for bytes and handle what they complete; for the main thread, when not watched."""
        try:
            # Who waits in the read itself is woken, too, when the node has taken what was sent.
            self._arrival.poll()
            if not self._reader.fill():
                self._node_is_gone()
        except OSError:
            self._node_is_gone()
        self._handle()

    def watch(self) -> bool:
        """From now on the watcher reads. Returns whether it did so before."""
        with self._lock:
            before, self._watched = self._watched, True
            self._epoll.modify(self._connection, _ARMED)
        return before

    def unwatch(self) -> bool:
        """From now on the caller reads. Returns whether the watcher did so before."""
        with self._lock:
            before, self._watched = self._watched, False
            self._epoll.modify(self._connection, _DISARMED)
        return before

    def _watch(self) -> None:
        try:
            while True:
                self._epoll.poll()
                with self._lock:
                    if self._watched:
                        self._read_available()
                        self._epoll.modify(self._connection, _ARMED)
        except Exception:  # barrier: without its watcher the worker could not be stopped
            sys.excepthook(*sys.exc_info())
            os._exit(1)

    def _read_available(self) -> None:
        try:
            while True:
                if not self._reader.fill(socket.MSG_DONTWAIT):
                    self._node_is_gone()
                self._handle()
        except BlockingIOError:
            return
        except OSError:
            self._node_is_gone()

    def _handle(self) -> None:
        try:
            while (frame := self._reader.next()) is not None:
                kind, flags, _, _, payload = frame
                if kind == f.PING:
                    self.send(f.PONG, 0, payload=payload)
                elif f.HELLO <= kind <= f.NOTICE:
                    self._on_frame(frame)
                elif flags & f.CRITICAL:
                    raise f.ProtocolError(f"a critical frame of the unknown kind {kind}")
        except (f.ProtocolError, ValueError) as exc:
            print(f"spear: the node broke the protocol: {exc}", file=sys.stderr, flush=True)
            os._exit(1)

    def _node_is_gone(self) -> None:
        """Nobody is left to work for: end at once, whatever else runs in this process."""
        os._exit(1)
