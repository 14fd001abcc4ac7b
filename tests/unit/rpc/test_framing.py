"""Frames on a stream of bytes, whole and hostile."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_core.api import Message
from spear_core.errors import ProtocolError
from spear_core.rpc.framing import HEADER_SIZE, MAX_FRAME, FrameParser, encode_header

messages = st.builds(
    Message,
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
    st.integers(0, 255),
    st.binary(max_size=300),
    st.binary(max_size=2000) | st.integers(60_000, 140_000).map(bytes),
)


def frame(message: Message) -> bytes:
    return encode_header(message) + message.head + message.payload


def plain(message: Message) -> Message:
    return Message(message.kind, message.id, message.flags, message.head, bytes(message.payload))


@settings(deadline=None, max_examples=60)
@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 100_000), min_size=1, max_size=8))
def test_messages_survive_any_cutting(sent: list[Message], cuts: list[int]) -> None:
    data = b"".join(map(frame, sent))
    parser = FrameParser()
    got: list[Message] = []
    at = number = 0
    while at < len(data):
        size = cuts[number % len(cuts)]
        got += parser.feed(data[at : at + size])
        at, number = at + size, number + 1
    assert list(map(plain, got)) == sent
    assert not parser.mid_frame


def test_one_byte_at_a_time() -> None:
    sent = [Message(3, 1, 0, b"head", b"payload"), Message(5, 2**40, 2, b"", b"")]
    parser = FrameParser()
    got: list[Message] = []
    for byte in b"".join(map(frame, sent)):
        got += parser.feed(bytes([byte]))
    assert got == sent


def test_mid_frame_is_known_at_every_byte() -> None:
    data = frame(Message(3, 1, 0, b"head", b"payload"))
    parser = FrameParser()
    assert not parser.mid_frame
    for byte in data[:-1]:
        assert parser.feed(bytes([byte])) == []
        assert parser.mid_frame
    assert len(parser.feed(data[-1:])) == 1
    assert not parser.mid_frame


def test_the_header_is_the_documented_one() -> None:
    header = encode_header(Message(3, 258, 8, b"ab", b"xyz"))
    assert header == bytes.fromhex("00000011 03 08 0002 0000000000000102".replace(" ", ""))


@pytest.mark.parametrize(
    ("length", "head_size", "words"),
    [
        (2**32 - 1, 0, "a frame of 4294967295 bytes; at most"),
        (MAX_FRAME + 1, 0, "at most"),
        (0, 0, "its header alone has 12"),
        (11, 0, "its header alone has 12"),
        (20, 9, "a head of 9 bytes in a frame of 20"),
        (12, 65535, "a head of 65535 bytes in a frame of 12"),
    ],
)
def test_impossible_headers_are_refused_for_good(length: int, head_size: int, words: str) -> None:
    parser = FrameParser()
    header = struct.pack(">IBBHQ", length, 3, 0, head_size, 1)
    with pytest.raises(ProtocolError, match=words):
        parser.feed(header)
    with pytest.raises(ProtocolError, match=words):
        parser.next_message()


def test_a_claimed_length_takes_no_memory() -> None:
    header = struct.pack(">IBBHQ", MAX_FRAME, 3, 0, 0, 1)
    tracemalloc.start()
    try:
        parsers = [FrameParser() for _ in range(8)]
        for parser in parsers:
            parser.feed(header + bytes(100))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * (2 << 20)


def test_a_frame_of_the_limit_passes_and_one_more_byte_does_not() -> None:
    limit = 1000
    fits = Message(3, 1, 0, b"", bytes(limit - (HEADER_SIZE - 4)))
    data = encode_header(fits, max_frame=limit) + fits.payload
    assert FrameParser(max_frame=limit).feed(data) == [fits]
    with pytest.raises(ValueError, match="1001"):
        encode_header(Message(3, 1, 0, b"", bytes(limit - 11)), max_frame=limit)


def test_a_head_over_its_field_is_refused() -> None:
    with pytest.raises(ValueError, match="65535"):
        encode_header(Message(3, 1, 0, bytes(65536)))


def test_a_memoryview_of_wider_items_is_refused() -> None:
    with pytest.raises(ValueError, match="cast"):
        encode_header(Message(3, 1, 0, b"", memoryview(bytes(16)).cast("I")))


def test_payloads_are_the_receivers_own() -> None:
    parser = FrameParser()
    (first,) = parser.feed(frame(Message(3, 1, 0, b"", b"first")))
    (large,) = parser.feed(frame(Message(3, 1, 0, b"", b"L" * 100_000)))
    parser.feed(frame(Message(3, 2, 0, b"", b"other")))
    parser.feed(frame(Message(3, 2, 0, b"", b"M" * 100_000)))
    assert first.payload == b"first"
    assert large.payload == b"L" * 100_000
