"""Frames over a real socket pair."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_sdk import _frames as f

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def receive(reader: f.FrameReader) -> f.Frame:
    while (frame := reader.next()) is None:
        assert reader.fill(), "the connection ended"
    return frame


def wait_for_a_waiter(lock: f._TurnLock) -> None:
    """Until another thread waits for a lock that somebody has."""
    while lock._next.acquire(blocking=False):
        lock._next.release()
        time.sleep(0.001)


def raw(kind: int, number: int, head: bytes = b"", payload: bytes = b"", flags: int = 0) -> bytes:
    length = 12 + len(head) + len(payload)
    return f._HEADER.pack(length, kind, flags, len(head), number) + head + payload


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(
    "size", [0, 1, 16384, 16385, 65536, f.CHUNK - 1, f.CHUNK, f.CHUNK + 1, 2 * f.CHUNK, 3_000_001]
)
def test_carries_payloads_of_any_size(pair: Pair, size: int, kind: type) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    writer, reader = f.FrameWriter(pair[0]), f.FrameReader(pair[1])
    sender = threading.Thread(
        target=writer.send, args=(f.REQUEST, 7, b"head"), kwargs={"payload": kind(payload)}
    )
    sender.start()
    got_kind, flags, number, head, got = receive(reader)
    sender.join()
    assert (got_kind, flags, number, head) == (f.REQUEST, 0, 7, b"head")
    assert bytes(got) == payload


def test_a_large_message_goes_in_pieces_and_lets_others_pass(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
    pair[1].settimeout(60)
    writer = f.FrameWriter(pair[0])
    sender = threading.Thread(target=writer.send, args=(f.RESPONSE, 3, b"h", b"x" * 8_000_000))
    sender.start()
    data = pair[1].recv(1 << 16)  # the sender is in its first piece, and waits
    other = threading.Thread(target=writer.send, args=(f.NOTICE, 0, b"n"))
    other.start()
    wait_for_a_waiter(writer._lock)
    kinds = []
    while not ((f.DATA, 0) in kinds and (f.NOTICE, 0) in kinds):
        while len(data) < 16 or len(data) < 4 + f._HEADER.unpack_from(data)[0]:
            data += pair[1].recv(1 << 20)
        length, kind, flags, _, _ = f._HEADER.unpack_from(data)
        assert length <= 12 + 1 + f.CHUNK
        kinds.append((kind, flags))
        data = data[4 + length :]
    sender.join()
    other.join()
    assert kinds[0] == (f.RESPONSE, f.MORE)
    assert kinds[-1] == (f.DATA, 0)
    assert len(kinds) == 8_000_000 // f.CHUNK + 2
    assert kinds.index((f.NOTICE, 0)) == 1


def test_a_sender_of_many_pieces_does_not_take_the_turn_of_one_who_waits() -> None:
    lock, order = f._TurnLock(), []

    def waits() -> None:
        with lock:
            order.append("the other")

    with lock:
        other = threading.Thread(target=waits)
        other.start()
        wait_for_a_waiter(lock)
    with lock:
        order.append("the sender")
    other.join()
    assert order == ["the other", "the sender"]


@pytest.mark.parametrize("size", [10, 100_000, 700_000])
def test_a_finalizer_may_send_wherever_it_strikes(pair: Pair, size: int) -> None:
    """Also in the middle of a frame, where its message has to wait."""
    told: list[str] = []

    class Struck:
        def sendmsg(self, buffers: tuple[bytes, bytes]) -> int:
            strike()
            return pair[0].sendmsg([bytes(part)[:1000] for part in buffers])

        def sendall(self, data: bytes) -> None:
            strike()
            pair[0].sendall(data)

    def strike() -> None:
        if not told:
            told.append("")
            writer.send(f.NOTICE, 0, b"n", b"y" * size)
            try:
                writer.send(f.REQUEST, 2, b"", b"a question that nobody could answer")
            except RuntimeError as exc:
                told.append(str(exc))

    writer = f.FrameWriter(Struck())  # type: ignore[arg-type]
    sender = threading.Thread(target=writer.send, args=(f.RESPONSE, 1, b"head", b"x" * size))
    sender.daemon = True
    sender.start()
    pair[1].settimeout(60)
    reader = f.FrameReader(pair[1])
    got = sorted((bytes(frame[3]), bytes(frame[4])) for frame in (receive(reader), receive(reader)))
    assert got == [(b"head", b"x" * size), (b"n", b"y" * size)]
    sender.join()
    assert told == ["", f._NO_TIME]


@pytest.mark.parametrize("at", ["waiting", "taken"])
def test_a_finalizer_may_send_while_its_thread_waits_for_its_turn(pair: Pair, at: str) -> None:
    writer = f.FrameWriter(pair[0])
    with writer._lock._next:
        if at == "taken":
            writer._lock._lock.acquire()
        writer.send(f.NOTICE, 0, b"n")
        if at == "taken":
            writer._lock._lock.release()
    pair[1].settimeout(60)
    assert receive(f.FrameReader(pair[1]))[3] == b"n"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_split_of_the_bytes_gives_the_same_messages(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([0, 3, 70_000, 150_000]), min_size=1, max_size=6))
    stream = b"".join(
        raw(f.REQUEST, 2 * at, b"h" * at, bytes([at]) * size) for at, size in enumerate(sizes)
    )
    left, right = socket.socketpair()
    with left, right:
        reader = f.FrameReader(right)
        got = []
        while stream:
            cut = data.draw(st.integers(1, min(len(stream), 60_000)))
            left.sendall(stream[:cut])
            stream = stream[cut:]
            assert reader.fill()
            while (frame := reader.next()) is not None:
                got.append((frame[2], frame[3], frame[4]))
        left.shutdown(socket.SHUT_WR)
        while reader.fill():
            while (frame := reader.next()) is not None:
                got.append((frame[2], frame[3], frame[4]))
    expected = [(2 * at, b"h" * at, bytes([at]) * size) for at, size in enumerate(sizes)]
    assert got == expected


def test_two_large_messages_may_be_interleaved(pair: Pair) -> None:
    reader = f.FrameReader(pair[1])
    for data in (
        raw(f.REQUEST, 1, b"a", b"1", f.MORE),
        raw(f.RESPONSE, 2, b"b", b"2", f.MORE | f.ERROR),
        raw(f.DATA, 1, payload=b"1", flags=f.MORE),
        raw(f.DATA, 2, payload=b"2"),
        raw(f.DATA, 1, payload=b"1"),
        raw(f.DATA, 99, payload=b"of nothing"),
    ):
        pair[0].sendall(data)
    pair[0].close()
    got = []
    while reader.fill():
        while (frame := reader.next()) is not None:
            got.append(frame)
    assert got == [
        (f.RESPONSE, f.ERROR, 2, b"b", b"22"),
        (f.REQUEST, 0, 1, b"a", b"111"),
        (f.DATA, 0, 99, b"", b"of nothing"),  # of a stream, for all the reader knows
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (f._HEADER.pack(0xFFFFFFFF, f.REQUEST, 0, 0, 1), "4294967295 bytes; at most"),
        (f._HEADER.pack(11, f.REQUEST, 0, 0, 1), "a frame of 11 bytes"),
        (f._HEADER.pack(20, f.REQUEST, 0, 9, 1), "a head of 9"),
        (raw(f.PING, 1, flags=f.MORE), "kind 8 cannot go on"),
    ],
)
def test_refuses_hostile_frames(pair: Pair, data: bytes, problem: str) -> None:
    reader = f.FrameReader(pair[1])
    pair[0].sendall(data)
    reader.fill()
    with pytest.raises(f.ProtocolError, match=problem):
        reader.next()


def test_refuses_an_endless_message(pair: Pair) -> None:
    reader = f.FrameReader(pair[1])
    reader.max_frame = 1000
    pair[0].sendall(raw(f.REQUEST, 1, b"", b"x" * 600, f.MORE) + raw(f.DATA, 1, b"", b"x" * 600))
    reader.fill()
    with pytest.raises(f.ProtocolError, match="more than 1000"):
        reader.next()


@pytest.mark.parametrize("taken", [5, 20, 21, 40_000])
def test_a_frame_that_is_sent_in_parts_stays_whole(pair: Pair, taken: int) -> None:
    class Interrupted:
        """As a socket whose sendmsg a signal interrupts."""

        def sendmsg(self, buffers: tuple[bytes, bytes]) -> int:
            data = b"".join(buffers)[:taken]
            pair[0].sendall(data)
            return len(data)

        def sendall(self, data: bytes) -> None:
            pair[0].sendall(data)

    payload = bytes(range(250)) * 200
    f.FrameWriter(Interrupted()).send(f.REQUEST, 1, b"head", payload)  # type: ignore[arg-type]
    assert receive(f.FrameReader(pair[1])) == (f.REQUEST, 0, 1, b"head", payload)
