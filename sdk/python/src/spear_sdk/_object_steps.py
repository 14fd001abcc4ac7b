"""What each use of objects asks of the node, written once for sync and async code.

Each function here is a generator: it yields a hostcall (name, payload, file descriptor or None), is
sent the answer (payload, descriptor or None) or has it raised, and returns what its caller wants.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os

from spear_sdk._errors import HostcallError
from spear_sdk._stored import InlineObject, ObjectStat, StoredObject, mapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import Any, TypeAlias, TypeVar

    from spear_sdk._frames import Buffer, Descriptor

    T = TypeVar("T")
    Step: TypeAlias = tuple[str, bytes, int | None]
    Answer: TypeAlias = tuple[bytes, Descriptor | None]
    Steps: TypeAlias = Generator[Step, Answer, T]

__all__ = [
    "MOST_IN_ONE",
    "PIPED",
    "Check",
    "Delete",
    "Put",
    "ask",
    "bytes_of",
    "get",
    "join",
    "piped",
    "put",
    "split",
]

INLINE = 64 << 10
"""Up to this size a value goes in the frame itself, which is quicker than a file."""
PIPED = 8 << 20
"""From this size on it goes through a pipe, where the node's store would rather have it so."""
_PIPED_AT_ONCE = 64 << 20
"""The node waits a minute for what it was told would come."""
MOST_IN_ONE = 4 << 20
"""A larger value that cannot go as a file goes piece by piece."""
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_WRITE_AT_ONCE = 1 << 30
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class Put:
    """In a transaction: write a new version. See :meth:`Objects.put`."""

    def __init__(self, key: str, data: object, **options: Any) -> None:
        self.data = bytes_of(data)
        self.head = _written(key, **options) | {"op": "put", "size": len(self.data)}


class Delete:
    """In a transaction: delete an object. See :meth:`Objects.delete`."""

    data: Buffer = b""

    def __init__(self, key: str, *, expect: int | str | None = None) -> None:
        self.head = {"op": "delete", "key": key, "expect": expect}


class Check:
    """In a transaction: change nothing, but let it fail unless the object is as expected."""

    data: Buffer = b""

    def __init__(self, key: str, expect: int | str) -> None:
        self.head = {"op": "check", "key": key, "expect": expect}


def bytes_of(data: object) -> memoryview:
    """Any buffer as plain bytes, without a copy if they are in one piece.

    Raises: TypeError for anything that is no buffer; text has to be encoded first.
    """
    try:
        view = memoryview(data)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise TypeError(
            f"an object's value is bytes, or something with a buffer, not {type(data).__name__}"
        ) from None
    if view.c_contiguous and view.nbytes:
        try:
            return view.cast("B")
        except TypeError:  # items of a kind that memoryview does not know
            pass
    return memoryview(view.tobytes())


def put(key: str, data: object, *, passes_fds: bool, **options: Any) -> Steps[ObjectStat]:
    """See :meth:`Objects.put`."""
    view = bytes_of(data)
    head = _written(key, **options)
    size = len(view)
    if passes_fds and size >= PIPED:
        stat = yield from _put_through_pipes(head | {"size": size}, view)
        if stat is not None:
            return stat
    if passes_fds and size > INLINE:
        fd = _sealed(view)
        try:
            answer = yield "objects.put", join(head | {"size": size}), fd
        finally:
            os.close(fd)
        return _stat(answer)
    if size <= MOST_IN_ONE:
        return _stat((yield "objects.put", join(head, view), None))
    handle = split((yield "objects.create", join(head | {"size": size}), None)[0])[0]
    for at in range(0, size, MOST_IN_ONE):
        yield "objects.write", join(handle, view[at : at + MOST_IN_ONE]), None
    return _stat((yield "objects.commit", join(handle), None))


def _put_through_pipes(head: dict[str, Any], view: memoryview) -> Steps[ObjectStat | None]:
    """Write it piece by piece. None if it is to be put at once, by another way: for the sake
    of the store, of an older node, or of this process's limits."""
    try:
        created = split((yield "objects.create", join(head), None)[0])[0]
        handle = {"handle": created["handle"]}
        if not created.get("pipe") or (yield from piped(handle, view)) < len(view):
            yield "objects.close", join(handle), None
            return None
    except HostcallError as error:
        if error.name != "ResourceExhaustedError":
            raise
        return None  # so many objects are open, or the node cannot open the pipe
    return _stat((yield "objects.commit", join(handle), None))


def piped(handle: dict[str, str], view: memoryview) -> Steps[int]:
    """Write it to an open object through pipes; how many bytes went there, which is less than all
    where this process's limits do not allow a pipe, or a thread to fill it."""
    from spear_sdk._pipes import Feeding

    at = 0
    try:
        while at < len(view):
            piece = view[at : at + _PIPED_AT_ONCE]
            with Feeding(piece) as feeding:
                yield "objects.write", join(handle | {"size": len(piece)}), feeding.pipe
            at += len(piece)
    except (OSError, RuntimeError):
        pass
    return at


def get(key: str, *, version: int | None) -> Steps[StoredObject]:
    """See :meth:`Objects.get`."""
    answer, file = yield "objects.get", join({"key": key, "version": version}), None
    head, value = split(answer)
    stat = ObjectStat(**head["stat"])
    if file is not None:
        return mapped(file, stat)
    if head.get("whole", True):
        return InlineObject(value, stat)
    answer, file = yield "objects.open", join({"key": key, "version": version}), None
    head, _ = split(answer)
    return (yield from _get_in_pieces(head["handle"], ObjectStat(**head["stat"])))


def _get_in_pieces(handle: str, stat: ObjectStat) -> Steps[StoredObject]:
    from spear_sdk._frames import Descriptor

    memory = Descriptor(os.memfd_create("spear-object", os.MFD_CLOEXEC))
    for at in range(0, stat.size, MOST_IN_ONE):
        wanted = {"handle": handle, "offset": at, "length": MOST_IN_ONE}
        piece, _ = yield "objects.read", join(wanted), None
        _write_all(memory.number, memoryview(piece))
    yield "objects.close", join({"handle": handle}), None
    return mapped(memory, stat)


def ask(verb: str, head: dict[str, Any], *values: Buffer) -> Steps[Any]:
    """One hostcall; returns its head."""
    answer, _ = yield f"objects.{verb}", join(head, *values), None
    return split(answer)[0]


def transact(operations: Iterable[Put | Delete | Check]) -> Steps[list[ObjectStat | None]]:
    """See :meth:`Objects.transact`."""
    operations = list(operations)
    heads = [operation.head for operation in operations]
    values = (operation.data for operation in operations)
    answer = yield from ask("transact", {"operations": heads}, *values)
    return [stat and ObjectStat(**stat) for stat in answer["stats"]]


def listed(prefix: str, after: str | None, limit: int | None) -> Steps[list[ObjectStat]]:
    """See :meth:`Objects.list`."""
    found: list[ObjectStat] = []
    while limit is None or len(found) < limit:
        most = 1000 if limit is None else min(1000, limit - len(found))
        page = yield from ask("list", {"prefix": prefix, "after": after, "limit": most})
        found += [ObjectStat(**stat) for stat in page["objects"]]
        after = page["next_key"]
        if after is None:
            break
    return found


def one(verb: str, key: str, **more: Any) -> Steps[Any]:
    """A hostcall on one key that answers what the object is afterwards."""
    answer = yield from ask(verb, {"key": key, **more})
    return answer["stat"] and ObjectStat(**answer["stat"])


def join(head: dict[str, Any], *values: Buffer) -> bytes:
    """The payload of a hostcall."""
    data = _encode(head).encode()
    return b"".join((len(data).to_bytes(4, "little"), data, *values))


def split(answer: bytes) -> tuple[Any, memoryview]:
    """The head of an answer, and the rest."""
    end = 4 + int.from_bytes(answer[:4], "little")
    return _decode(answer[4:end].decode()), memoryview(answer)[end:]


def _written(
    key: str,
    *,
    expect: int | str | None = None,
    content_type: str = "application/octet-stream",
    ttl: float | None = None,
    hashed: bool = True,
) -> dict[str, Any]:
    head: dict[str, Any] = {"key": key, "content_type": content_type}
    if expect is not None:
        head["expect"] = expect
    if ttl is not None:
        head["ttl"] = ttl
    if not hashed:
        head["hashed"] = False
    return head


def _stat(answer: Answer) -> ObjectStat:
    return ObjectStat(**split(answer[0])[0]["stat"])


def _sealed(view: memoryview) -> int:
    """Memory with a copy of it that nobody can change any more. Raises: MemoryError."""
    fd = os.memfd_create("spear-object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write_all(fd, view)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, view: memoryview) -> None:
    try:
        while view:
            view = view[os.write(fd, view[:_WRITE_AT_ONCE]) :]
    except OSError as exc:
        if exc.errno not in (errno.ENOMEM, errno.ENOSPC):
            raise
        raise MemoryError(f"no memory for an object's value: {exc.strerror}") from exc
