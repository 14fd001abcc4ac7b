"""What a function returns, as bytes and a content type."""

from __future__ import annotations

import sys

from spear_sdk._errors import OutputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BYTES", "JSON", "TEXT", "encode_output", "to_json"]

BYTES = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


def encode_output(value: object) -> tuple[bytes | bytearray | memoryview, str]:
    """Bytes as they are, text as UTF-8, None as nothing, anything else as JSON.

    Raises: OutputError when it cannot be JSON either.
    """
    if value is None:
        return b"", BYTES
    if isinstance(value, bytes | bytearray):
        return value, BYTES
    if isinstance(value, str):
        return value.encode(), TEXT
    if isinstance(value, memoryview):
        return value.tobytes(), BYTES
    mapped = sys.modules.get("mmap")
    if mapped is not None and isinstance(value, mapped.mmap):  # an object that was got
        return value[:], BYTES
    return to_json(value), JSON


def to_json(value: object) -> bytes:
    """JSON without spaces. Raises: OutputError naming what JSON cannot hold."""
    import json

    try:
        text = json.dumps(
            value, default=_plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    except (TypeError, ValueError, RecursionError) as exc:
        raise OutputError(
            f"the function returned a {type(value).__name__} that is neither bytes nor text "
            f"and cannot be JSON: {exc}"
        ) from None
    return text.encode(errors="surrogatepass")


def _plain(value: Any) -> object:
    """For what json doesn't know."""
    cls = type(value)
    fields = getattr(cls, "__dataclass_fields__", None)
    if fields is not None:
        import dataclasses

        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    fields = getattr(cls, "__attrs_attrs__", None)
    if fields is not None:
        return {field.alias or field.name: getattr(value, field.name) for field in fields}
    if isinstance(value, set | frozenset):
        return list(value)
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        return value.value
    for method in ("isoformat", "model_dump"):
        convert = getattr(value, method, None)
        if convert is not None:
            return convert()
    raise TypeError(f"a {cls.__name__} is no JSON value")
