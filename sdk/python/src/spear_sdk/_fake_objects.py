"""Objects in memory for tests: what a node answers to the hostcalls ``objects.*``."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from spear_sdk._errors import (
    HostcallError,
    ObjectConflictError,
    ObjectNotFoundError,
    hostcall_error,
)
from spear_sdk._object_steps import join, split

__all__ = ["FakeObjects"]

_Answer: TypeAlias = "tuple[Mapping[str, Any], bytes]"
_OWN = "/test/"


class FakeObjects:
    """Every key may be read and written; nothing is ever full, and time collects nothing."""

    def __init__(self, values: Mapping[str, bytes]) -> None:
        self.values: dict[str, bytes] = {}
        self._stats: dict[str, dict[str, Any]] = {}
        self._last: dict[str, int] = {}
        self._revision = 0
        self._opened: dict[str, tuple[Any, bytearray]] = {}
        self._handles = map(str, itertools.count(1))
        for key, value in values.items():
            self._write(_own(key), value, {})

    def call(self, name: str, payload: bytes) -> bytes:
        """Answer one. Raises: HostcallError."""
        head, rest = split(payload)
        for key in ("key", "prefix"):
            if key in head:
                head[key] = _own(head[key])
        verb = name.partition(".")[2]
        method = "_append" if verb == "write" else f"_{verb}"
        answer: Callable[[Any, bytes], _Answer] = getattr(self, method)
        found, value = answer(head, bytes(rest))
        return value if name == "objects.read" else join(dict(found), value)

    def _put(self, head: Any, value: bytes) -> _Answer:
        self._check(head["key"], head.get("expect"))
        return {"stat": self._write(head["key"], value, head)}, b""

    def _get(self, head: Any, value: bytes) -> _Answer:
        stat = self._find(head["key"])
        if head.get("version") not in (None, stat["version"]):
            raise _not_found(f"version {head['version']} of {head['key']!r} is gone")
        return {"stat": stat}, self.values[head["key"]]

    def _stat(self, head: Any, value: bytes) -> _Answer:
        return {"stat": self._find(head["key"])}, b""

    def _delete(self, head: Any, value: bytes) -> _Answer:
        self._find(head["key"])
        self._check(head["key"], head.get("expect"))
        self._remove(head["key"])
        return {"stat": None}, b""

    def _list(self, head: Any, value: bytes) -> _Answer:
        after, limit = head.get("after") or "", head.get("limit", 1000)
        keys = [key for key in sorted(self.values) if key.startswith(head.get("prefix", ""))]
        keys = [key for key in keys if key > after]
        page = [self._stats[key] for key in keys[:limit]]
        next_key = keys[limit - 1] if len(keys) > limit else None
        return {"objects": page, "next_key": next_key, "revision": self._revision}, b""

    def _add_ref(self, head: Any, value: bytes) -> _Answer:
        return self._change(head["key"], refs=self._find(head["key"])["refs"] + 1)

    def _remove_ref(self, head: Any, value: bytes) -> _Answer:
        refs = self._find(head["key"])["refs"]
        if not refs:
            text = f"object {head['key']!r} has no reference to remove"
            raise HostcallError(text, name="InvalidRequestError", code="invalid_argument")
        return self._change(head["key"], refs=refs - 1)

    def _pin(self, head: Any, value: bytes) -> _Answer:
        return self._change(head["key"], pinned=True)

    def _unpin(self, head: Any, value: bytes) -> _Answer:
        return self._change(head["key"], pinned=False)

    def _transact(self, head: Any, value: bytes) -> _Answer:
        operations = [one | {"key": _own(one["key"])} for one in head["operations"]]
        for one in operations:
            self._check(one["key"], one.get("expect"))
            if one["op"] == "delete" and one.get("expect") is None:
                self._find(one["key"])
        for one in operations:
            if one["op"] == "put":
                self._write(one["key"], value[: one["size"]], one)
                value = value[one["size"] :]
            elif one["op"] == "delete" and one["key"] in self.values:
                self._remove(one["key"])
        return {"stats": [self._stats.get(one["key"]) for one in operations]}, b""

    # ---- piece by piece

    def _open(self, head: Any, value: bytes) -> _Answer:
        found, data = self._get(head, b"")
        handle = next(self._handles)
        self._opened[handle] = head, bytearray(data)
        return {"stat": found["stat"], "handle": handle}, b""

    def _read(self, head: Any, value: bytes) -> _Answer:
        _, data = self._opened[head["handle"]]
        return {}, bytes(data[head["offset"] : head["offset"] + head["length"]])

    def _create(self, head: Any, value: bytes) -> _Answer:
        handle = next(self._handles)
        self._opened[handle] = head, bytearray()
        return {"handle": handle}, b""

    def _append(self, head: Any, value: bytes) -> _Answer:
        self._opened[head["handle"]][1].extend(value)
        return {}, b""

    def _commit(self, head: Any, value: bytes) -> _Answer:
        asked, written = self._opened.pop(head["handle"])
        return self._put(asked, bytes(written))

    def _close(self, head: Any, value: bytes) -> _Answer:
        del self._opened[head["handle"]]
        return {}, b""

    # ---- parts

    def _find(self, key: str) -> dict[str, Any]:
        if key not in self._stats:
            raise _not_found(f"there is no object {key!r}")
        return self._stats[key]

    def _check(self, key: str, expect: int | str | None) -> None:
        stat = self._stats.get(key, {"version": 0, "sha256": ""})
        if expect is None or expect in (stat["version"], stat["sha256"] or None):
            return
        text = f"object {key!r} is at version {stat['version']}, not {expect}"
        head = {"name": "ObjectConflictError", "code": "aborted", "retryable": True}
        error = hostcall_error(head | {"message": text, "current": stat["version"]})
        assert isinstance(error, ObjectConflictError)
        raise error

    def _write(self, key: str, value: bytes, head: Any) -> dict[str, Any]:
        now, ttl = time.time(), head.get("ttl")
        before = self._stats.get(key, {"created_at": now, "refs": 0, "pinned": False})
        self._revision += 1
        self._last[key] = self._last.get(key, 0) + 1
        self._stats[key] = before | {
            "key": key,
            "size": len(value),
            "version": self._last[key],
            "revision": self._revision,
            "sha256": hashlib.sha256(value).hexdigest() if head.get("hashed", True) else "",
            "updated_at": now,
            "content_type": head.get("content_type", "application/octet-stream"),
            "expires_at": None if ttl is None else now + ttl,
        }
        self.values[key] = value
        return self._stats[key]

    def _change(self, key: str, **changed: Any) -> _Answer:
        before = self._find(key)
        stat = self._stats[key] = before | changed
        collected = not stat["refs"] and not stat["pinned"]
        if collected and (before["refs"] or before["pinned"]):
            self._remove(key)
            return {"stat": None}, b""
        return {"stat": stat}, b""

    def _remove(self, key: str) -> None:
        del self._stats[key], self.values[key]


def _own(key: str) -> str:
    return key.removeprefix(_OWN)


def _not_found(message: str) -> ObjectNotFoundError:
    return ObjectNotFoundError(message, name="ObjectNotFoundError", code="not_found")
