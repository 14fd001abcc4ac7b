"""The hostcalls objects.*, with a real store and no guest."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import (
    HostcallContext,
    HostcallProvider,
    HostcallValue,
    ObjectStore,
    OwnedFd,
)
from spear_core.builtins._open_objects import IDLE_S, MOST_OPEN
from spear_core.builtins.memory_store import (
    MemoryObjectStore,
    MemoryStoreConfig,
    open_memory_store,
)
from spear_core.builtins.objects import NAMES, ObjectsConfig, open_objects
from spear_core.errors import (
    InvalidRequestError,
    ObjectConflictError,
    ObjectNotFoundError,
    ResourceExhaustedError,
    SpearError,
    StoreFullError,
)
from spear_core.stores import PieceWriter
from spear_core.testing import make_context

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
LARGE = 200_000
PIECE = 4 << 20


@attrs.define
class Guest:
    """Calls as one task does."""

    provider: HostcallProvider
    store: ObjectStore
    task: str = "t1"
    ended: trio.Event = attrs.field(factory=trio.Event)

    async def ask(
        self, verb: str, value: bytes = b"", *, fd: OwnedFd | None = None, takes_fd: bool = False,
        **head: Any,
    ) -> tuple[Any, bytes, OwnedFd | None]:  # fmt: skip
        """The answer's head, what follows it, its file."""
        data = json.dumps(head).encode()
        caller = HostcallContext(
            execution_id="e1",
            task_id=self.task,
            artifact="a@1",
            objects=self.store,
            fd=fd,
            takes_fd=takes_fd,
            wait_ended=self.ended.wait,
        )
        payload = struct.pack("<I", len(data)) + data + value
        answer = await self.provider.call(caller, f"objects.{verb}", payload)
        assert isinstance(answer, HostcallValue)
        got = bytes(answer.payload)
        if verb == "read":
            return None, got, answer.fd
        end = 4 + struct.unpack_from("<I", got)[0]
        return json.loads(got[4:end]), got[end:], answer.fd


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Guest]:
    context = make_context(tmp_path)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    async with (
        open_memory_store(context, MemoryStoreConfig(memory_store_bytes=20 << 20)) as store,
        open_objects(context, ObjectsConfig()) as provider,
    ):
        guest = Guest(provider, store)
        yield guest
        del guest.store, store
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def memory(value: bytes, *, seals: int = _SEALS, size: int | None = None) -> OwnedFd:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, value)
    if size is not None:
        os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return OwnedFd(fd)


async def test_small_values_go_in_the_frame(guest: Guest) -> None:
    answer, _, _ = await guest.ask("put", b"value", key="k", content_type="text/plain")
    assert (answer["stat"]["version"], answer["stat"]["size"]) == (1, 5)
    answer, value, fd = await guest.ask("get", key="k", takes_fd=True)
    assert (answer["stat"]["content_type"], value, fd) == ("text/plain", b"value", None)


async def test_large_values_go_as_files(guest: Guest) -> None:
    value = os.urandom(LARGE)
    with memory(value) as fd:
        await guest.ask("put", key="k", size=LARGE, fd=fd)
    assert await guest.store.get("k") == (await guest.store.stat("k"), value)
    _, rest, got = await guest.ask("get", key="k", takes_fd=True)
    assert got is not None
    with got:
        assert (rest, os.pread(got.fileno(), LARGE + 1, 0)) == (b"", value)
        assert fcntl.fcntl(got.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    _, rest, none = await guest.ask("get", key="k")
    assert (rest, none) == (value, None)


@pytest.mark.parametrize(
    ("make", "size", "reason"),
    [
        (lambda: memory(bytes(LARGE), seals=0), LARGE, "not sealed"),
        (lambda: memory(bytes(LARGE), seals=fcntl.F_SEAL_WRITE), LARGE, "F_SEAL_GROW"),
        (lambda: memory(bytes(LARGE)), LARGE + 1, f"has {LARGE} bytes"),
        (lambda: memory(bytes(LARGE)), LARGE - 1, f"has {LARGE} bytes"),
        (lambda: memory(bytes(LARGE)), -1, f"has {LARGE} bytes"),
        (lambda: memory(bytes(LARGE)), None, "has a size"),
        (lambda: OwnedFd(os.open("/dev/zero", os.O_RDONLY)), LARGE, "no memory"),
        (lambda: OwnedFd(os.open("/", os.O_RDONLY)), LARGE, "no memory"),
        (lambda: OwnedFd(os.eventfd(0)), LARGE, "no memory"),
        (lambda: OwnedFd(os.open(__file__, os.O_RDONLY)), LARGE, "no memory"),
    ],
)
async def test_files_that_are_no_sealed_memory(
    guest: Guest, make: Callable[[], OwnedFd], size: int | None, reason: str
) -> None:
    head = {} if size is None else {"size": size}
    with make() as fd, pytest.raises(InvalidRequestError, match=reason):
        await guest.ask("put", key="k", fd=fd, **head)
    with pytest.raises(ObjectNotFoundError):
        await guest.store.stat("k")


async def test_huge_pages_are_no_memory_of_ours(guest: Guest) -> None:
    try:
        fd = OwnedFd(os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_ALLOW_SEALING))
        os.ftruncate(fd.fileno(), 2 << 20)
    except OSError as error:
        pytest.skip(f"this machine has no huge pages: {error}")
    with fd:
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
        with pytest.raises(InvalidRequestError, match="no memory"):
            await guest.ask("put", key="k", size=2 << 20, fd=fd)


async def test_sparse_memory_larger_than_the_store_is_refused_unread(guest: Guest) -> None:
    size = 1 << 40
    with memory(b"", size=size) as fd, pytest.raises(StoreFullError):
        await guest.ask("put", key="k", size=size, fd=fd)


async def test_what_cannot_go_as_a_file_is_read_in_pieces(guest: Guest) -> None:
    value = os.urandom(PIECE + 1000)
    await guest.store.put("k", value)
    answer, rest, fd = await guest.ask("get", key="k")
    assert (answer["whole"], rest, fd) == (False, b"", None)
    answer, _, _ = await guest.ask("open", key="k")
    handle = answer["handle"]
    await guest.store.put("k", b"other")  # it stays the version that was opened
    _, first, _ = await guest.ask("read", handle=handle, offset=0, length=PIECE)
    _, rest, _ = await guest.ask("read", handle=handle, offset=PIECE, length=PIECE)
    assert (answer["stat"]["version"], first + rest) == (1, value)
    assert (await guest.ask("read", handle=handle, offset=1 << 50, length=10))[1] == b""
    for offset, length in ((-1, 1), (0, -1), (0, PIECE + 1)):
        with pytest.raises(InvalidRequestError):
            await guest.ask("read", handle=handle, offset=offset, length=length)
    await guest.ask("close", handle=handle)
    with pytest.raises(InvalidRequestError, match="nothing open"):
        await guest.ask("read", handle=handle, offset=0, length=1)


async def test_open_gives_a_file_where_it_can(guest: Guest) -> None:
    await guest.store.put("k", bytes(LARGE))
    answer, _, fd = await guest.ask("open", key="k", takes_fd=True)
    assert fd is not None
    fd.close()
    assert "handle" not in answer


async def test_writing_in_pieces(guest: Guest) -> None:
    answer, _, _ = await guest.ask("create", key="k", expect=0, size=6)
    handle = answer["handle"]
    await guest.ask("write", b"abc", handle=handle)
    await guest.ask("write", b"def", handle=handle)
    with pytest.raises(ObjectNotFoundError):
        await guest.store.stat("k")
    answer, _, _ = await guest.ask("commit", handle=handle)
    assert answer["stat"]["size"] == 6
    assert (await guest.store.get("k"))[1] == b"abcdef"
    with pytest.raises(InvalidRequestError, match="nothing open"):
        await guest.ask("write", b"more", handle=handle)


async def test_a_writer_that_failed_is_closed(guest: Guest) -> None:
    for verb, value in (("write", b"too much"), ("commit", b"")):
        answer, _, _ = await guest.ask("create", key="k", size=3)
        with pytest.raises(InvalidRequestError, match="announced"):
            await guest.ask(verb, value, handle=answer["handle"])
        with pytest.raises(InvalidRequestError, match="nothing open"):
            await guest.ask("write", b"abc", handle=answer["handle"])
    answer, _, _ = await guest.ask("create", key="k", expect=7)
    with pytest.raises(ObjectConflictError):
        await guest.ask("commit", handle=answer["handle"])
    assert (await guest.store.usage()).bytes == 0


async def test_handles_are_a_tasks_own_and_of_one_kind(guest: Guest) -> None:
    await guest.store.put("k", bytes(PIECE + 1))
    reader = (await guest.ask("open", key="k"))[0]["handle"]
    writer = (await guest.ask("create", key="w"))[0]["handle"]
    with pytest.raises(InvalidRequestError, match="not for this"):
        await guest.ask("write", b"x", handle=reader)
    with pytest.raises(InvalidRequestError, match="not for this"):
        await guest.ask("read", handle=writer, offset=0, length=1)
    other = attrs.evolve(guest, task="t2")
    for verb, more in (("read", {"offset": 0, "length": 1}), ("close", {}), ("commit", {})):
        with pytest.raises(InvalidRequestError, match="nothing open"):
            await other.ask(verb, handle=reader, **more)


async def test_who_takes_no_files_is_lent_none(guest: Guest) -> None:
    """A store does not use memory again that was lent."""
    await guest.store.put("k", bytes(PIECE + 1))
    answer, _, fd = await guest.ask("get", key="k")
    assert (answer["whole"], fd) == (False, None)
    reader = (await guest.ask("open", key="k"))[0]["handle"]
    _, piece, _ = await guest.ask("read", handle=reader, offset=0, length=PIECE)
    assert piece == bytes(PIECE)
    await guest.ask("close", handle=reader)
    await guest.store.put("k", bytes(PIECE - 1))
    assert (await guest.ask("get", key="k"))[1] == bytes(PIECE - 1)
    await guest.store.delete("k")
    assert isinstance(guest.store, MemoryObjectStore)
    with trio.fail_after(60):  # a thread that has copied a part may have it a little longer
        while guest.store.values.memory.waiting < PIECE + 1 + PIECE - 1:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_the_end_of_a_task_closes_what_it_has_open(guest: Guest) -> None:
    await guest.store.put("k", bytes(PIECE + 1))
    reader = (await guest.ask("open", key="k"))[0]["handle"]
    writer = (await guest.ask("create", key="w", size=1 << 20))[0]["handle"]
    assert (await guest.store.usage()).bytes > PIECE + 1
    guest.ended.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (await guest.store.usage()).bytes == PIECE + 1
    for handle in (reader, writer):
        with pytest.raises(InvalidRequestError, match="nothing open"):
            await guest.ask("close", handle=handle)


async def test_what_is_idle_is_closed(guest: Guest, autojump_clock: Any) -> None:
    handle = (await guest.ask("create", key="k"))[0]["handle"]
    for _ in range(3):
        await trio.sleep(IDLE_S * 0.75)
        await guest.ask("write", b"x", handle=handle)
    await trio.sleep(IDLE_S * 1.1)
    with pytest.raises(InvalidRequestError, match="nothing open"):
        await guest.ask("commit", handle=handle)


async def test_a_task_has_only_so_many_open(guest: Guest) -> None:
    handles = [(await guest.ask("create", key="k"))[0]["handle"] for _ in range(MOST_OPEN)]
    with pytest.raises(ResourceExhaustedError, match="open already"):
        await guest.ask("create", key="k")
    await guest.ask("close", handle=handles[0])
    await guest.ask("create", key="k")
    with pytest.raises(ObjectNotFoundError):
        await attrs.evolve(guest, task="t2").ask("open", key="nobody")


async def test_a_task_has_no_more_open_for_asking_all_at_once(guest: Guest) -> None:
    await guest.store.put("k", bytes(PIECE + 1))
    outcomes: list[bool] = []

    async def open_it(verb: str) -> None:
        try:
            await guest.ask(verb, key="k")
        except ResourceExhaustedError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for _ in range(MOST_OPEN):
                nursery.start_soon(open_it, "open")
                nursery.start_soon(open_it, "create")
    assert outcomes.count(True) == MOST_OPEN
    guest.ended.set()
    await trio.testing.wait_all_tasks_blocked()
    await attrs.evolve(guest, ended=trio.Event()).ask("open", key="k")


async def test_closing_waits_for_a_call_that_uses_it(guest: Guest) -> None:
    answer, _, _ = await guest.ask("create", key="k")
    handle = answer["handle"]
    writing, go_on = trio.Event(), trio.Event()
    order: list[str] = []

    async def slow(self: Any, data: Any) -> None:
        writing.set()
        await go_on.wait()
        order.append("written")

    opened = guest.provider._opened  # type: ignore[attr-defined]
    writer_cls = type(opened._handles[handle].thing)
    kept = writer_cls.write
    writer_cls.write = slow
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: guest.ask("write", b"x", handle=handle))
            await writing.wait()

            async def close() -> None:
                await guest.ask("close", handle=handle)
                order.append("closed")

            nursery.start_soon(close)
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
            go_on.set()
    finally:
        writer_cls.write = kept
    assert order == ["written", "closed"]


async def test_transactions(guest: Guest) -> None:
    await guest.store.put("gone", b"")
    operations = [
        {"op": "put", "key": "a", "size": 3, "expect": 0},
        {"op": "delete", "key": "gone"},
        {"op": "put", "key": "b", "size": 2},
        {"op": "check", "key": "c", "expect": 0},
    ]
    answer, _, _ = await guest.ask("transact", b"aaabb", operations=operations)
    assert [stat and stat["size"] for stat in answer["stats"]] == [3, None, 2, None]
    assert (await guest.store.get("b"))[1] == b"bb"
    for value, more in (
        (b"aaab", operations[1:3]),
        (b"a", operations[2:3]),
        (b"", [{"op": "put", "key": "a", "size": -1}]),
        (b"", [{"op": "check", "key": "a"}]),
        (b"", [{"op": "sing", "key": "a"}]),
    ):
        with pytest.raises(InvalidRequestError):
            await guest.ask("transact", value, operations=more)


async def test_all_but_values(guest: Guest) -> None:
    for key in ("b", "a", "c"):
        await guest.ask("put", b"", key=key)
    assert (await guest.ask("add_ref", key="a"))[0]["stat"]["refs"] == 1
    assert (await guest.ask("pin", key="b"))[0]["stat"]["pinned"] is True
    assert (await guest.ask("remove_ref", key="a"))[0] == {"stat": None}
    assert (await guest.ask("unpin", key="b"))[0] == {"stat": None}
    assert (await guest.ask("stat", key="c"))[0]["stat"]["key"] == "c"
    page, _, _ = await guest.ask("list", limit=5000)
    assert [stat["key"] for stat in page["objects"]] == ["c"]
    assert (await guest.ask("delete", key="c", expect=1))[0] == {"stat": None}


async def test_malformed_calls(guest: Guest) -> None:
    caller = HostcallContext(execution_id="e", task_id="t", artifact="a@1", objects=guest.store)
    for name in NAMES:
        for payload in (b"", b"\xff\xff\xff\xff{}", b"\2\0\0\0[]", b'\3\0\0\0{"a'):
            with pytest.raises(InvalidRequestError):
                await guest.provider.call(caller, name, payload)
    with pytest.raises(InvalidRequestError, match="unknown field"):
        await guest.ask("put", key="k", colour="red")
    with memory(b"x") as fd, pytest.raises(InvalidRequestError, match="no bytes beside"):
        await guest.ask("put", b"beside", key="k", size=1, fd=fd)


async def test_without_objects(guest: Guest) -> None:
    caller = HostcallContext(execution_id="e", task_id="t", artifact="a@1")
    with pytest.raises(SpearError, match="no objects") as caught:
        await guest.provider.call(caller, "objects.stat", b"\2\0\0\0{}")
    assert caught.value.code == "unimplemented"


# ---- through a pipe


def full_pipe(value: bytes) -> tuple[OwnedFd, int]:
    """The end for the node, and the other, which stays open."""
    reading, writing = os.pipe()
    os.write(writing, value)
    return OwnedFd(reading), writing


async def test_a_piece_may_come_through_a_pipe(guest: Guest) -> None:
    handle = (await guest.ask("create", key="k"))[0]["handle"]
    await guest.ask("write", b"abc", handle=handle)
    pipe, writing = full_pipe(b"defgh and more")
    await guest.ask("write", handle=handle, fd=pipe, size=5)
    assert pipe.closed
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"nobody reads it any more")
    os.close(writing)
    await guest.ask("commit", handle=handle)
    assert (await guest.store.get("k"))[1] == b"abcdefgh"


@pytest.mark.parametrize("size", [None, 0, -1])
async def test_a_pipe_has_a_size(guest: Guest, size: int | None) -> None:
    for beside, wrong in ((b"", size), (b"x", 5)):
        handle = (await guest.ask("create", key="k"))[0]["handle"]
        pipe, writing = full_pipe(b"value")
        with pytest.raises(InvalidRequestError, match="has a size"):
            await guest.ask("write", beside, handle=handle, fd=pipe, size=wrong)
        with pytest.raises(InvalidRequestError, match="nothing open"):
            await guest.ask("commit", handle=handle)
        pipe.close()
        os.close(writing)


async def test_a_pipe_that_brings_nothing_is_not_waited_for_for_ever(
    guest: Guest, autojump_clock: Any
) -> None:
    handle = (await guest.ask("create", key="k", size=3 << 20))[0]["handle"]
    pipe, writing = full_pipe(b"a beginning")
    with pytest.raises(InvalidRequestError, match=f"{IDLE_S:g} seconds"):
        await guest.ask("write", handle=handle, fd=pipe, size=3 << 20)
    assert trio.current_time() >= IDLE_S
    os.close(writing)
    assert (await guest.store.usage()).bytes == 0


async def test_a_pipe_ends_with_its_task(guest: Guest) -> None:
    """Although the call goes on: the guest's process still lives, and may not know."""
    handle = (await guest.ask("create", key="k", size=3 << 20))[0]["handle"]
    pipe, writing = full_pipe(b"a beginning")

    async def write() -> None:
        with pytest.raises(InvalidRequestError, match="before the task ended"):
            await guest.ask("write", handle=handle, fd=pipe, size=3 << 20)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            guest.ended.set()
    os.close(writing)
    assert (await guest.store.usage()).bytes == 0


async def test_a_pipe_is_offered_where_one_can_be_sent_and_the_store_would_rather(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for preferred in (False, True):
        monkeypatch.setattr(PieceWriter, "prefers_pipe", preferred)
        for takes_fd in (False, True):
            answer, _, _ = await guest.ask("create", key="k", takes_fd=takes_fd)
            assert answer.get("pipe", False) is (preferred and takes_fd)
            await guest.ask("write", b"value", **answer)  # as an SDK does that knows of none
            await guest.ask("commit", **answer)
