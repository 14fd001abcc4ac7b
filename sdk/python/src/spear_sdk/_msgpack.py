"""The part of msgpack that heads use: nil, bool, int, float, str, bin, array and map."""

from __future__ import annotations

from struct import Struct, error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["pack", "unpack"]

_F32, _F64 = Struct(">f"), Struct(">d")
_TAGGED = {size: Struct(f">B{code}") for size, code in ((1, "B"), (2, "H"), (4, "I"))}
_NUMBERS = {
    0xCA: _F32,
    0xCB: _F64,
    0xCC: Struct(">B"),
    0xCD: Struct(">H"),
    0xCE: Struct(">I"),
    0xCF: Struct(">Q"),
    0xD0: Struct(">b"),
    0xD1: Struct(">h"),
    0xD2: Struct(">i"),
    0xD3: Struct(">q"),
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_UNSIGNED = ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8))
_SIGNED = ((0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8))
# Families of types that carry a length: tag and bytes of the length.
_BIN = ((0xC4, 1), (0xC5, 2), (0xC6, 4))
_STR = ((0xD9, 1), (0xDA, 2), (0xDB, 4))
_ARRAY = ((0xDC, 2), (0xDD, 4))
_MAP = ((0xDE, 2), (0xDF, 4))
_LENGTHS = dict(_BIN + _STR + _ARRAY + _MAP)


def pack(value: object) -> bytes:
    """Encode a value.

    Raises: TypeError for a type that heads don't have, ValueError for an int beyond 64 bits.
    """
    out = bytearray()
    _write(out, value)
    return bytes(out)


def unpack(data: bytes) -> object:
    """Decode exactly one value.

    Raises: ValueError when the bytes are cut off, go on after the value, or aren't msgpack.
    """
    try:
        value, end = _read(data, 0)
    except (IndexError, error, TypeError, RecursionError, UnicodeDecodeError) as exc:
        raise ValueError(f"malformed msgpack: {exc}") from None
    if end != len(data):
        raise ValueError(f"malformed msgpack: it ends at byte {end} of {len(data)}")
    return value


def _write(out: bytearray, value: object) -> None:
    writer = _WRITERS.get(type(value)) or next(
        (writer for kind, writer in _WRITERS.items() if isinstance(value, kind)), None
    )
    if writer is None:
        raise TypeError(f"a head cannot hold a {type(value).__name__}")
    writer(out, value)


def _write_none(out: bytearray, value: Any) -> None:
    out.append(0xC0)


def _write_bool(out: bytearray, value: Any) -> None:
    out.append(0xC3 if value else 0xC2)


def _write_int(out: bytearray, value: Any) -> None:
    if -0x20 <= value < 0x80:
        out.append(value & 0xFF)
        return
    for tag, size in _UNSIGNED if value > 0 else _SIGNED:
        if -1 << 8 * size - 1 <= value < 1 << 8 * size:
            out.append(tag)
            out += value.to_bytes(size, "big", signed=value < 0)
            return
    raise ValueError("an int in a head has at most 64 bits")


def _write_float(out: bytearray, value: Any) -> None:
    out.append(0xCB)
    out += _F64.pack(value)


def _tag(out: bytearray, length: int, family: tuple[tuple[int, int], ...]) -> None:
    for tag, size in family:
        if length < 1 << 8 * size:
            out += _TAGGED[size].pack(tag, length)
            return
    raise ValueError("a value in a head has at most 2**32 - 1 items")


def _write_str(out: bytearray, value: Any) -> None:
    data = value.encode()
    length = len(data)
    if length < 32:
        out.append(0xA0 | length)
    else:
        _tag(out, length, _STR)
    out += data


def _write_bytes(out: bytearray, value: Any) -> None:
    _tag(out, len(value), _BIN)
    out += value


def _write_list(out: bytearray, value: Any) -> None:
    length = len(value)
    if length < 16:
        out.append(0x90 | length)
    else:
        _tag(out, length, _ARRAY)
    for item in value:
        _write(out, item)


def _write_dict(out: bytearray, value: Any) -> None:
    length = len(value)
    if length < 16:
        out.append(0x80 | length)
    else:
        _tag(out, length, _MAP)
    for key, item in value.items():
        _write(out, key)
        _write(out, item)


_WRITERS: dict[type, Callable[[bytearray, Any], None]] = {
    str: _write_str,
    bool: _write_bool,
    int: _write_int,
    float: _write_float,
    dict: _write_dict,
    type(None): _write_none,
    bytes: _write_bytes,
    list: _write_list,
    tuple: _write_list,
}


# A slice past the end is short and not an error, but the index after it is then beyond the end,
# so either the next read or the check in `unpack` refuses what was cut off.
def _read(data: bytes, at: int) -> tuple[object, int]:
    tag = data[at]
    at += 1
    if tag < 0x80:
        return tag, at
    if tag < 0x90:
        return _read_map(data, at, tag & 0x0F)
    if tag < 0xA0:
        return _read_array(data, at, tag & 0x0F)
    if tag < 0xC0:
        end = at + (tag & 0x1F)
        return data[at:end].decode(), end
    if tag >= 0xE0:
        return tag - 0x100, at
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], at
    number = _NUMBERS.get(tag)
    if number is not None:
        return number.unpack_from(data, at)[0], at + number.size
    size = _LENGTHS.get(tag)
    if size is None:
        raise ValueError(f"malformed msgpack: a head has no type 0x{tag:02x}")
    start = at + size
    if start > len(data):
        raise ValueError("malformed msgpack: cut off in a length")
    length = int.from_bytes(data[at:start], "big")
    if tag >= 0xDE:
        return _read_map(data, start, length)
    if tag >= 0xDC:
        return _read_array(data, start, length)
    end = start + length
    return (data[start:end].decode() if tag >= 0xD9 else data[start:end]), end


def _read_map(data: bytes, at: int, length: int) -> tuple[dict[object, object], int]:
    result: dict[object, object] = {}
    for _ in range(length):
        tag = data[at]
        if 0xA0 <= tag < 0xC0:  # short text, as nearly all keys and most values are
            at += 1
            end = at + (tag & 0x1F)
            key: object = data[at:end].decode()
            at = end
        else:
            key, at = _read(data, at)
        tag = data[at]
        if 0xA0 <= tag < 0xC0:
            at += 1
            end = at + (tag & 0x1F)
            result[key] = data[at:end].decode()
            at = end
        else:
            result[key], at = _read(data, at)
    return result, at


def _read_array(data: bytes, at: int, length: int) -> tuple[list[object], int]:
    result: list[object] = []
    for _ in range(length):
        item, at = _read(data, at)
        result.append(item)
    return result, at
