"""The codec against msgspec's, which is the node's."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spear_sdk._msgpack import pack, unpack

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=80)
    | st.binary(max_size=80)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20)
    ),
    max_leaves=40,
)
EDGES: list[Any] = [
    *(
        sign * 2**bits + off
        for bits in (5, 7, 8, 15, 16, 31, 32, 62)
        for sign in (1, -1)
        for off in (-1, 0, 1)
    ),
    *("é" * n for n in (15, 16, 31, 32, 127, 128, 32767, 32768)),
    *(b"x" * n for n in (0, 255, 256, 65535, 65536)),
    *([None] * n for n in (15, 16, 65535, 65536)),
    *({str(i): i for i in range(n)} for n in (15, 16, 65536)),
]


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_agrees_with_msgspec(value: Any) -> None:
    assert msgspec.msgpack.decode(pack(value)) == value
    assert unpack(msgspec.msgpack.encode(value)) == value


@pytest.mark.parametrize("value", EDGES, ids=lambda v: f"{type(v).__name__}-{str(v)[:12]}")
def test_agrees_at_the_edges_of_each_size(value: Any) -> None:
    assert pack(value) == msgspec.msgpack.encode(value)
    assert unpack(pack(value)) == value


def test_reads_single_precision() -> None:
    assert unpack(b"\xca\x3f\x00\x00\x00") == 0.5


@settings(max_examples=100, deadline=None)
@given(VALUES, st.data())
def test_refuses_what_is_cut_off(value: Any, data: st.DataObject) -> None:
    whole = msgspec.msgpack.encode(value)
    at = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match="malformed msgpack"):
        unpack(whole[:at])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_refuses_rubbish_as_value_error(data: bytes) -> None:
    try:
        value = unpack(data)
    except ValueError:
        return
    assert repr(unpack(pack(value))) == repr(value)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\xd4\x00\x00", b"\x01\x01", b"\x91" * 60_000, b"\xa1\xff", b"\x81\x90\x01",
     b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xffx"],
)  # fmt: skip
def test_refuses(data: bytes) -> None:
    with pytest.raises(ValueError, match="malformed msgpack"):
        unpack(data)


def test_packs_subclasses_as_what_they_are() -> None:
    class Level(enum.IntEnum):
        HIGH = 3

    class Name(str):
        __slots__ = ()

    assert pack([Level.HIGH, Name("x"), (1, 2)]) == pack([3, "x", [1, 2]])


def test_refuses_to_pack_what_heads_do_not_have() -> None:
    with pytest.raises(TypeError, match="object"):
        pack({"a": object()})
    with pytest.raises(ValueError, match="64 bits"):
        pack(2**64)
    with pytest.raises(ValueError, match="64 bits"):
        pack(-(2**63) - 1)
