"""Large values on their way to the node through a pipe."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from spear_sdk import HostcallError, StoreFullError
from spear_sdk._errors import hostcall_error
from spear_sdk._frames import Descriptor
from spear_sdk._object_steps import MOST_IN_ONE, PIPED, join, split
from spear_sdk._pipes import Feeding
from spear_sdk.testing import FakeContext

VALUE = bytes(range(256)) * (PIPED // 256) + b"tail"


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert "spear-feeding" not in [thread.name for thread in threading.enumerate()]


def read(pipe: int, size: int) -> bytes:
    os.set_blocking(pipe, True)
    parts = []
    while size and (part := os.read(pipe, min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def test_all_of_it_comes_out() -> None:
    with Feeding(memoryview(VALUE)) as feeding:
        assert read(feeding.pipe, len(VALUE) + 1) == VALUE


def test_a_user_with_much_in_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = fcntl.fcntl

    def refuse(fd: int, command: int, arg: int = 0) -> Any:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError
        return kept(fd, command, arg)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with Feeding(memoryview(VALUE)) as feeding:
        assert read(feeding.pipe, len(VALUE)) == VALUE


def test_nobody_wants_the_rest() -> None:
    """Also when a child that was forked meanwhile has the pipe open, and reads nothing."""
    for forked in (False, True):
        with Feeding(memoryview(VALUE)) as feeding:
            child = os.dup(feeding.pipe) if forked else -1
            assert read(feeding.pipe, 100) == VALUE[:100]
        if forked:
            os.close(child)


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError):
        Feeding(memoryview(VALUE))


def test_a_process_that_dies_of_broken_pipes_does_not_die_of_this_one() -> None:
    code = """if True:
        import os, signal, time
        from spear_sdk._pipes import Feeding
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        with Feeding(memoryview(bytes(9 << 20))) as feeding:
            os.set_blocking(feeding.pipe, True)
            os.read(feeding.pipe, 100)
        print("alive")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("alive\n", 0), done.stderr


class Node:
    """Answers as a node does that offers pipes, or does not."""

    passes_fds = True

    def __init__(self, *, pipe: bool, error: HostcallError | None = None) -> None:
        self.pipe = pipe
        self.error = error
        self.refuses = "create"
        self.calls: list[str] = []
        self.value = b""

    def exchange(
        self, context: object, name: str, payload: bytes, fd: int | None
    ) -> tuple[bytes, Descriptor | None]:
        head, rest = split(payload)
        verb = name.removeprefix("objects.")
        self.calls.append(verb)
        if verb == self.refuses and self.error is not None:
            raise self.error
        answer: dict[str, Any] = {"stat": {"key": "k", "size": len(self.value)}}
        if verb == "create":
            assert head["size"] in (None, len(VALUE))
            answer = {"handle": "h"} | ({"pipe": True} if self.pipe else {})
        elif verb == "write":
            self.value += bytes(rest) if fd is None else read(fd, head["size"])
        elif verb == "put":
            assert fd is not None
            self.value = os.pread(fd, head["size"], 0)
        return join(answer), None

    async def aexchange(
        self, context: object, name: str, payload: bytes, fd: int | None
    ) -> tuple[bytes, Descriptor | None]:
        return self.exchange(context, name, payload, fd)


def context_of(node: Node) -> FakeContext:
    context = FakeContext()
    context._host = node  # type: ignore[assignment]
    return context


def test_a_large_value_is_created_and_fed() -> None:
    node = Node(pipe=True)
    context_of(node).objects.put("k", VALUE)
    assert (node.calls, node.value == VALUE) == (["create", "write", "commit"], True)


def test_a_smaller_one_goes_at_once() -> None:
    node = Node(pipe=True)
    context_of(node).objects.put("k", VALUE[: PIPED - 1])
    assert (node.calls, node.value == VALUE[: PIPED - 1]) == (["put"], True)


@pytest.mark.parametrize("trouble", ["no pipes", "no threads", "too many open", "not opened"])
def test_it_goes_as_memory_where_no_pipe_can_be(
    monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    node = Node(pipe=trouble != "no pipes")
    if trouble == "no threads":

        def start(self: Any) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
    if trouble in ("too many open", "not opened"):
        node.error = HostcallError("too many", name="ResourceExhaustedError")
        node.refuses = "create" if trouble == "too many open" else "write"
    context_of(node).objects.put("k", VALUE)
    between = {"too many open": [], "not opened": ["write"]}.get(trouble, ["close"])
    assert (node.calls, node.value == VALUE) == (["create", *between, "put"], True)


@pytest.mark.parametrize("trouble", ["", "no pipes", "no threads"])
def test_large_pieces_go_through_pipes_too(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    node = Node(pipe=trouble != "no pipes")
    if trouble == "no threads":

        def start(self: Any) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
    with context_of(node).objects.create("k") as writer:
        for piece in (b"small", VALUE, b"small"):
            assert writer.write(piece) == len(piece)
    assert node.value == b"small" + VALUE + b"small"
    writes = 3 if not trouble else 2 + -(-len(VALUE) // MOST_IN_ONE)
    assert node.calls == ["create", *["write"] * writes, "commit"]


@pytest.mark.parametrize("refused", ["create", "write"])
def test_what_the_node_refuses_is_raised(refused: str) -> None:
    told = {"name": "StoreFullError", "message": "full", "code": "resource_exhausted"}
    node = Node(pipe=True, error=hostcall_error(told))
    node.refuses = refused
    with pytest.raises(StoreFullError):
        context_of(node).objects.put("k", VALUE)
    assert node.calls == (["create"] if refused == "create" else ["create", "write"])


async def test_from_async_code() -> None:
    node = Node(pipe=True)
    await context_of(node).objects.aput("k", VALUE)
    assert (node.calls, node.value == VALUE) == (["create", "write", "commit"], True)


def test_the_buffer_is_free_when_the_put_has_ended() -> None:
    """Also when it has failed, and the thread was in the middle of it."""
    value = bytearray(VALUE)

    class Refuses(Node):
        def exchange(self, context: object, name: str, payload: bytes, fd: int | None) -> Any:
            if name == "objects.write":
                time.sleep(0.01)
                raise HostcallError("no")
            return super().exchange(context, name, payload, fd)

    with pytest.raises(HostcallError):
        context_of(Refuses(pipe=True)).objects.put("k", value)
    gc.collect()
    value.clear()  # a BufferError if anybody still looked at it
