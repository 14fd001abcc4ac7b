"""Streams of a real worker: credit to the byte, pieces, cancellation, a node that cheats."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

REQUEST, RESPONSE, DATA, CREDIT, CANCEL, PING, NOTICE = 3, 4, 5, 6, 7, 8, 11
END_STREAM, MORE, ERROR, STREAM = 1, 2, 4, 8
WINDOW = 262_144
NUMBER = 901

SOURCE = """
import threading, time
from collections.abc import AsyncIterator, Iterator
from spear_sdk import Context, function

@function
def plain(chunks: Iterator[bytes], ctx: Context) -> Iterator[bytes]:
    try:
        for chunk in chunks:
            yield chunk
    finally:
        ctx.log.info("plain is over")

@function
async def loop(chunks: AsyncIterator[bytes], ctx: Context) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        ctx.log.info("loop is over")

@function(backend="trio")
async def nursery(chunks: AsyncIterator[bytes], ctx: Context) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        ctx.log.info("nursery is over")

@function
def flood(size: bytes) -> Iterator[bytes]:
    while True:
        yield bytes(int(size))

@function
def never(chunks: Iterator[bytes], ctx: Context) -> str:
    ctx.log.info("started")
    while not ctx.cancelled:
        time.sleep(0.01)
    return "late"

@function
def whole(data: bytes) -> str:
    return f"{len(data)}"

@function
def large() -> bytes:
    return bytes(40 << 20)

@function
def too_large() -> Iterator[bytes]:
    yield bytes((16 << 20) + 1)

@function
def main(x: bytes) -> bytes:
    return x
"""
ECHOES = ["plain", "loop", "nursery"]


class Caller:
    """Opens one stream and keeps to the window by itself."""

    def __init__(self, node: Any, entry: str, **args: Any) -> None:
        self.node = node
        self.credit = WINDOW
        self.owed = 0
        self.number = NUMBER + 2 * node.opened
        node.opened += 1
        self.log: list[str] = []
        args = {
            "execution_id": "e1",
            "task_id": "t1",
            "entry": entry,
            "max_input_bytes": 1000,
        } | args
        node.send(REQUEST, self.number, {"method": "stream", "args": args}, flags=STREAM)

    def send(self, data: bytes = b"", flags: int = 0) -> None:
        self.credit -= 16 + len(data)
        self.node.send(DATA, self.number, None, data, flags)

    def end(self) -> None:
        self.node.send(DATA, self.number, None, b"", END_STREAM)

    def frame(self) -> Any:
        """The next frame that is about data or the answer; credit is counted."""
        while True:
            frame = self.node.receive()
            if frame.kind == NOTICE:
                self.log.append(frame.head["args"]["message"])
            elif frame.kind == CREDIT:
                self.credit += frame.head["bytes"]
            else:
                assert frame.id == self.number, frame
                return frame

    def chunk(self) -> bytes:
        """The next chunk, its pieces joined and paid for."""
        parts = []
        while True:
            frame = self.frame()
            assert frame.kind == DATA, frame
            self.owed += 16 + len(frame.payload)
            self.grant()
            parts.append(frame.payload)
            if not frame.flags & MORE:
                return b"".join(parts)

    def take_all(self, least: int = 0) -> int:
        """Bytes of frames that come without paying for any: so many, and until nothing comes for a
        while."""
        taken = 0
        while taken < least:
            taken += 16 + len(self.frame().payload)
        self.node.connection.settimeout(0.5)
        try:
            while True:
                taken += 16 + len(self.frame().payload)
        except TimeoutError:
            return taken
        finally:
            self.node.connection.settimeout(60)

    def grant(self) -> None:
        self.node.send(CREDIT, self.number, {"bytes": self.owed})
        self.owed = 0


@pytest.fixture
def node(start_node: Callable[..., Any]) -> Any:
    node: Any = start_node(SOURCE)
    node.opened = 0
    return node


@pytest.mark.parametrize("entry", ECHOES)
def test_chunks_come_back_and_the_answer_after_them(node: Any, entry: str) -> None:
    caller = Caller(node, entry)
    for chunk in (b"one", b"", b"x" * 65_536):
        caller.send(chunk)
        assert caller.chunk() == chunk
    caller.send(b"in ", MORE)
    caller.send(b"pieces")
    assert caller.chunk() == b"in pieces"
    caller.end()
    answer = caller.frame()
    assert (answer.kind, answer.payload) == (RESPONSE, b"")
    assert answer.head["status"] == "completed"
    assert caller.log == [f"{entry} is over"]
    assert node.output("main", b"next") == b"next"


@pytest.mark.parametrize("entry", ECHOES)
def test_credit_comes_back_for_all_that_was_read(node: Any, entry: str) -> None:
    caller = Caller(node, entry)
    for _ in range(40):  # ten windows
        assert caller.credit >= 65_552
        caller.send(bytes(65_536))
        assert len(caller.chunk()) == 65_536
    caller.end()
    assert caller.frame().head["status"] == "completed"
    assert WINDOW // 2 < caller.credit <= WINDOW


@pytest.mark.parametrize("size", [100, 5_000, 100_000])
def test_no_more_is_sent_than_was_granted(node: Any, size: int) -> None:
    caller = Caller(node, "flood")
    caller.send(b"%d" % size)
    caller.end()
    piece = min(size, 65_536) + 16
    got = caller.take_all(WINDOW - piece)
    assert got <= WINDOW
    caller.owed = got
    caller.grant()
    assert caller.frame().kind == DATA
    node.send(CANCEL, caller.number)
    while (frame := caller.frame()).kind == DATA:
        pass
    assert frame.flags & ERROR
    assert frame.head["code"] == "cancelled"


@pytest.mark.parametrize("entry", ECHOES)
@pytest.mark.parametrize("where", ["reading", "writing"])
def test_a_cancellation_closes_the_generator_where_it_is(node: Any, entry: str, where: str) -> None:
    caller = Caller(node, entry)
    caller.send(b"x")
    assert caller.chunk() == b"x"
    if where == "writing":
        for _ in range(3):
            caller.send(bytes(65_536))
        caller.take_all(3 * 65_552)
        caller.send(bytes(65_536))  # for which no credit is left on the way back
        assert caller.take_all() == 0
    node.send(CANCEL, caller.number)
    while (frame := caller.frame()).kind == DATA:
        pass
    assert frame.head["code"] == "cancelled"
    assert caller.log == [f"{entry} is over"]
    assert node.output("main", b"next") == b"next"


def test_input_that_nobody_reads_is_dropped_with_its_stream(node: Any) -> None:
    caller = Caller(node, "never")
    caller.send(bytes(60_000))
    node.read_until("started")
    node.send(CANCEL, caller.number)
    assert caller.frame().kind == RESPONSE
    caller.send(bytes(60_000))  # too late, and ignored
    assert node.output("main", b"next") == b"next"


def test_a_function_that_takes_its_input_whole(node: Any) -> None:
    caller = Caller(node, "whole")
    caller.send(bytes(500))
    caller.send(bytes(500))
    caller.end()
    assert caller.chunk() == b"1000"
    assert caller.frame().head["status"] == "completed"
    caller = Caller(node, "whole")
    caller.send(bytes(1001))
    answer = caller.frame()
    assert answer.head["status"] == "failed"
    assert answer.head["error"]["code"] == "resource_exhausted"
    assert "more than 1000 bytes" in answer.head["error"]["message"]


def test_a_large_answer_is_several_chunks_and_a_large_chunk_an_error(node: Any) -> None:
    caller = Caller(node, "large")
    caller.end()
    assert [len(caller.chunk()) for _ in range(3)] == [16 << 20, 16 << 20, 8 << 20]
    assert caller.frame().head["status"] == "completed"
    caller = Caller(node, "too_large")
    caller.end()
    error = caller.frame().head["error"]
    assert error["code"] == "resource_exhausted"
    assert str(16 << 20) in error["message"]


def test_a_failure_before_the_first_chunk(node: Any) -> None:
    caller = Caller(node, "missing")
    answer = caller.frame()
    assert answer.head["status"] == "failed"
    assert answer.head["error"]["code"] == "not_found"


@pytest.mark.parametrize("how", ["too much", "after the end"])
def test_a_node_that_breaks_the_rules_ends_the_worker(node: Any, how: str) -> None:
    caller = Caller(node, "never")
    node.read_until("started")
    if how == "too much":
        with suppress(ConnectionError):  # it may have ended by the fourth
            for _ in range(5):
                caller.send(bytes(65_536))
    else:
        caller.end()
        with suppress(ConnectionError):
            caller.send(b"more")
    assert node.process.wait(60) == 1
