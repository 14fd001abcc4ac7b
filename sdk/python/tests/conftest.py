"""A small node to drive a real worker with: sockets, frames and nothing of the SDK."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import msgspec
import pytest

HEADER = Struct(">IBBHQ")
HELLO, WELCOME, REQUEST, RESPONSE, DATA, CREDIT, CANCEL, PING, PONG, GOAWAY, NOTICE = range(1, 12)
MORE, ERROR = 2, 4
SECRET = "5e" * 32


class Frame(NamedTuple):
    kind: int
    flags: int
    id: int
    head: Any
    payload: bytes


class Node:
    """The accepting side of one worker's channel, and the worker's process."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.process = process
        self.connection = connection
        connection.settimeout(60)
        self._buffer = bytearray()
        self._number = -1
        self.logs: list[tuple[str, str, str]] = []
        """Execution, level, message."""

    def receive(self) -> Frame:
        while len(self._buffer) < 16 or len(self._buffer) < 4 + HEADER.unpack_from(self._buffer)[0]:
            data = self.connection.recv(1 << 20)
            if not data:
                raise EOFError
            self._buffer += data
        length, kind, flags, head_length, number = HEADER.unpack_from(self._buffer)
        head = bytes(self._buffer[16 : 16 + head_length])
        payload = bytes(self._buffer[16 + head_length : 4 + length])
        del self._buffer[: 4 + length]
        return Frame(kind, flags, number, msgspec.msgpack.decode(head) if head else {}, payload)

    def send(
        self, kind: int, number: int, head: Any = None, payload: bytes = b"", flags: int = 0
    ) -> None:
        data = b"" if head is None else msgspec.msgpack.encode(head)
        length = 12 + len(data) + len(payload)
        self.connection.sendall(
            HEADER.pack(length, kind, flags, len(data), number) + data + payload
        )

    def request(
        self,
        entry: str = "",
        payload: bytes = b"",
        *,
        content_type: str = "application/octet-stream",
        deadline_s: float | None = None,
    ) -> int:
        """Send an execute request; returns its id."""
        self._number += 2
        args = {
            "execution_id": f"e{self._number}",
            "task_id": "t1",
            "attempt": 1,
            "entry": entry,
            "content_type": content_type,
            "deadline_s": deadline_s,
            "trace": "00-aa-bb-01",
        }
        head = {"method": "execute", "args": args}
        first, *rest = [payload[at : at + 262144] for at in range(0, len(payload), 262144)] or [b""]
        self.send(REQUEST, self._number, head, first, MORE if rest else 0)
        for at, part in enumerate(rest, 1):
            self.send(DATA, self._number, None, part, MORE if at < len(rest) else 0)
        return self._number

    def answer(self, number: int) -> Frame:
        """Receive until the answer to this request, logs being kept; pieces are joined."""
        pieces = b""
        first: Frame | None = None
        while True:
            frame = self.receive()
            if frame.kind == NOTICE:
                args = frame.head["args"]
                self.logs.append((args["execution_id"], args["level"], args["message"]))
                continue
            assert frame.kind in (RESPONSE, DATA), frame
            assert frame.id == number, frame
            first = first or frame
            pieces += frame.payload
            if not frame.flags & MORE:
                return first._replace(payload=pieces)

    def execute(self, entry: str = "", payload: bytes = b"", **options: Any) -> Frame:
        return self.answer(self.request(entry, payload, **options))

    def output(self, entry: str = "", payload: bytes = b"", **options: Any) -> bytes:
        """The output of an execution that completes."""
        frame = self.execute(entry, payload, **options)
        assert frame.head.get("status") == "completed", frame
        return frame.payload

    def failure(self, entry: str = "", payload: bytes = b"", **options: Any) -> dict[str, Any]:
        """The error of an execution that fails."""
        frame = self.execute(entry, payload, **options)
        assert frame.head.get("status") == "failed", frame
        error: dict[str, Any] = frame.head["error"]
        return error

    def read_until(self, marker: str) -> None:
        """Wait for a log entry with this message."""
        while True:
            frame = self.receive()
            if frame.kind == NOTICE and frame.head["args"]["message"] == marker:
                return

    def shut_down(self) -> int:
        self.send(NOTICE, 0, {"method": "shutdown", "args": {"grace_s": 1.0}})
        return self.process.wait(60)


def listener(address: str, directory: Path) -> tuple[socket.socket, str]:
    if address == "unix":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(directory / "s"))
        url = f"unix://{directory / 's'}"
    else:
        server = socket.create_server(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    server.listen()
    server.settimeout(60)
    return server, url


StartNode = Callable[..., Node]


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """Start a worker of the given source and welcome it."""
    with contextlib.ExitStack() as stack:

        def start(
            source: str,
            *,
            address: str = "unix",
            filename: str = "agent.py",
            welcome: bool = True,
            python: tuple[str, ...] = ("-m", "spear_sdk.worker"),
            forked: bool = False,
            **environ: str,
        ) -> Node:
            file = tmp_path / f"code-{time.monotonic_ns()}" / filename
            file.parent.mkdir()
            file.write_text(textwrap.dedent(source))
            server, url = listener(address, tmp_path)
            env = dict(
                os.environ,
                SPEAR_CHANNEL=url,
                SPEAR_INSTANCE_ID="i-1",
                SPEAR_CHANNEL_SECRET=SECRET,
                SPEAR_ARTIFACT="a@1",
                SPEAR_ARTIFACT_FILE=str(file),
                SPEAR_ARTIFACT_FILENAME=filename,
                **environ,
            )
            process = subprocess.Popen(
                [sys.executable, *python],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            stack.callback(_end, process)
            with server:
                connection, _ = server.accept()
            stack.enter_context(connection)
            node = Node(process, connection)
            hello = node.receive()
            assert hello.kind == HELLO
            assert forked == (hello.head["pid"] != process.pid)
            assert hello.head | {"pid": 0} == {
                "v": 1,
                "role": "instance",
                "instance": "i-1",
                "secret": bytes.fromhex(SECRET),
                "pid": 0,
                "agent": "spear-sdk/0.1.0",
            } | ({"fds": True} if url.startswith("unix:") else {})
            if welcome:
                node.send(WELCOME, 0, {"v": 1, "node": "n1", "max_frame": (64 << 20) + (64 << 10)})
            return node

        yield start


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@pytest.fixture
def ends_soon() -> Callable[[int], bool]:
    """Whether a process ends within half a minute, its parent or not."""

    def check(pid: int) -> bool:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([descriptor], [], [], 30.0)[0])
        finally:
            os.close(descriptor)

    return check
