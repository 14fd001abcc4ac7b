"""Agents put and get objects, with the hostcalls of the node and a real store."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import struct
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    ExecutionResponse,
    HostcallContext,
    HostcallValue,
    IsolationLevel,
    Limits,
    ObjectStore,
    ObjectView,
)
from spear_core.builtins.memory_store import MemoryStoreConfig, open_memory_store
from spear_core.builtins.objects import NAMES, ObjectsConfig, open_objects
from spear_core.errors import InstanceLostError
from spear_core.testing import make_context
from spear_runtime_process._machine import look_around
from spear_sdk.testing import FakeContext

MIB = 1 << 20
Single = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
async def store(context: Any, hostcalls: Any, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """The store behind the hostcalls of every agent here; none leaves a file open in the node."""
    fake = make_context(tmp_path)
    async with (
        open_memory_store(fake, MemoryStoreConfig(memory_store_bytes=512 << 20)) as store,
        open_objects(fake, ObjectsConfig()) as provider,
    ):

        async def exchange(
            execution_id: str, name: str, value: HostcallValue, *, takes_fd: bool
        ) -> HostcallValue:
            caller = HostcallContext(
                execution_id=execution_id,
                task_id="task",
                artifact="agent@1",
                objects=hostcalls.seen_as(store),
                fd=value.fd,
                takes_fd=takes_fd,
            )
            assert name in NAMES
            answer = await provider.call(caller, name, bytes(value.payload))
            assert isinstance(answer, HostcallValue)
            if answer.fd is not None:
                hostcalls.files += 1
            return answer

        hostcalls.files, hostcalls.seen_as = 0, lambda store: store
        hostcalls.exchange = exchange
        yield store
        del hostcalls.exchange  # no cycle keeps the store and its files


def output_of(response: ExecutionResponse) -> Any:
    assert response.error is None, response.error
    return json.loads(response.payload)


AGENT = """
    import array
    import mmap
    from spear_sdk import Context, function

    @function
    def main(ctx: Context) -> dict:
        numbers = array.array("d", range(1_000_000))
        put = ctx.objects.put("numbers", numbers, content_type="application/x-doubles")
        got = ctx.objects.get("numbers")
        view = memoryview(got).cast("d")
        small = ctx.objects.put("small", b"tiny", expect=0)
        return {
            "put": [put.version, put.size, put.content_type, len(put.sha256)],
            "mapped": isinstance(got, mmap.mmap),
            "sum": sum(view),
            "read_only": view.readonly,
            "small": bytes(ctx.objects.get("small")).decode(),
            "keys": [stat.key for stat in ctx.objects.list()],
        }
"""


async def test_a_large_array_goes_and_comes_by_file_descriptor(
    place: Any, single: Single, make_request: Any, store: ObjectStore, hostcalls: Any
) -> None:
    async with single(place.artifact("agent.py", AGENT)) as instance:
        answer = output_of(await instance.execute(make_request()))
    assert answer == {
        "put": [1, 8_000_000, "application/x-doubles", 64],
        "mapped": True,
        "sum": sum(range(1_000_000)),
        "read_only": True,
        "small": "tiny",
        "keys": ["numbers", "small"],
    }
    assert hostcalls.files == 1


MAPS = """
    import mmap, os, time
    from spear_sdk import Context, function

    @function
    def total(key: str, ctx: Context) -> list:
        got = ctx.objects.get(key)
        touched = sum(memoryview(got)[::mmap.PAGESIZE])
        lines = [line.split() for line in open("/proc/self/maps") if "spear-object" in line]
        return [touched, len(got), *{(int(line[4]), line[1]) for line in lines}]

    @function
    def dies(key: str, ctx: Context) -> None:
        got = ctx.objects.get(key)
        writer = ctx.objects.create("half").__enter__()
        writer.write(bytes(2_000_000))
        ctx.log.info("mapped %d", len(got))
        os.kill(os.getpid(), 9)

    @function
    def waits(key: str, ctx: Context) -> str:
        got = ctx.objects.get(key)
        view = memoryview(got)[-4:]
        ctx.objects.put("mapped", b"")
        while True:
            try:
                ctx.objects.stat(key)
            except Exception:
                return bytes(view).decode()
"""


@pytest.mark.parametrize("level", list(IsolationLevel))
async def test_objects_pass_at_every_level_of_isolation(
    place: Any, single: Single, make_request: Any, store: ObjectStore, level: IsolationLevel
) -> None:
    machine = await look_around(bwrap="bwrap", use_cgroups=True)
    if missing := machine.missing_for(level):
        pytest.skip(missing)
    artifact = place.artifact("agent.py", AGENT, required_isolation=level)
    config = {"isolation": "none"} if level is IsolationLevel.NONE else {}
    async with single(artifact, **config) as instance:
        response = await instance.execute(make_request())
    assert output_of(response)["mapped"] is True
    assert response.usage.isolation is not None
    assert response.usage.isolation >= level


async def test_what_is_mapped_is_the_stores_own_memory(
    place: Any, single: Single, make_request: Any, store: ObjectStore, use_cgroups: bool
) -> None:
    """It is no copy, and so does not count as the worker's: there is more of it than it may use."""
    size = 128 * MIB
    await store.put("k", b"\1" + bytes(size - 1), hashed=False)
    artifact = place.artifact("agent.py", MAPS, limits=Limits(memory_bytes=64 * MIB))
    async with (
        store.open("k") as view,
        single(artifact, use_cgroups=use_cgroups) as instance,
    ):
        assert view.fd is not None
        for _ in range(3):
            answer = output_of(await instance.execute(make_request(b"k", entry="total")))
            assert answer == [1, size, [os.fstat(view.fd).st_ino, "r--s"]]


async def test_a_worker_killed_while_it_maps_and_writes_leaves_nothing(
    place: Any, single: Single, make_request: Any, store: ObjectStore
) -> None:
    await store.put("k", bytes(4 * MIB))
    gc.collect()
    before = len(memory_files())
    async with place.open() as runtime:
        artifact = place.artifact("agent.py", MAPS)
        await runtime.prepare(artifact)
        for _ in range(3):
            async with runtime.open_instance(place.spec(artifact)) as instance:
                with pytest.raises(InstanceLostError):
                    await instance.execute(make_request(b"k", entry="dies"))
    gc.collect()
    # the writers stay until their task has ended, which this node does not tell; each has a file
    assert len(memory_files()) <= before + 3
    assert [stat.key for stat in (await store.list()).objects] == ["k"]


async def test_an_object_deleted_while_it_is_mapped_stays_readable(
    place: Any, single: Single, make_request: Any, store: ObjectStore
) -> None:
    await store.put("k", bytes(2 * MIB) + b"tail")
    answers: list[ExecutionResponse] = []
    async with single(place.artifact("agent.py", MAPS)) as instance:

        async def run() -> None:
            answers.append(await instance.execute(make_request(b"k", entry="waits")))

        async with store.watch("mapped", start_revision=1) as changes, trio.open_nursery() as n:
            n.start_soon(run)
            await changes.receive()
            await store.put("k", bytes(3 * MIB))
            await store.delete("k")
    assert answers[0].payload == b"tail"


def memory_files() -> list[str]:
    """The files of this process that are memory."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [name for name in found if name.startswith("/memfd:")]


LIES = """
    import fcntl, json, os
    from spear_sdk import Context, HostcallError, function

    def attempt(ctx, size, *, seals, claimed):
        fd = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
        os.write(fd, bytes(size))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        head = json.dumps({"key": "k", "size": claimed}).encode()
        try:
            ctx._host.exchange(ctx, "objects.put", len(head).to_bytes(4, "little") + head, fd)
            return "taken"
        except HostcallError as error:
            return error.code
        finally:
            os.close(fd)

    @function
    def main(ctx: Context) -> list:
        sealed = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        return [
            attempt(ctx, 100_000, seals=0, claimed=100_000),
            attempt(ctx, 100_000, seals=fcntl.F_SEAL_WRITE, claimed=100_000),
            attempt(ctx, 100_000, seals=sealed, claimed=200_000),
            attempt(ctx, 100_000, seals=sealed, claimed=1),
            attempt(ctx, 100_000, seals=sealed, claimed=100_000),
        ]
"""


async def test_memory_that_can_be_changed_or_is_lied_about_is_refused(
    place: Any, single: Single, make_request: Any, store: ObjectStore
) -> None:
    gc.collect()
    async with single(place.artifact("agent.py", LIES)) as instance:
        before = memory_files()
        answer = output_of(await instance.execute(make_request()))
        await store.delete("k")
        gc.collect()
        assert memory_files() == before
    assert answer == ["invalid_argument"] * 4 + ["taken"]


VANDAL = """
    import os
    from spear_sdk import Context, function

    @function
    def main(ctx: Context) -> list:
        head = b'{"key":"k"}'
        payload = len(head).to_bytes(4, "little") + head
        _, file = ctx._host.exchange(ctx, "objects.get", payload, None)
        told = []
        for attempt in (
            lambda: os.fchmod(file.number, 0o666),
            lambda: os.open(f"/proc/self/fd/{file.number}", os.O_RDWR),
            lambda: os.pwrite(file.number, b"vandal", 0),
            lambda: os.ftruncate(file.number, 0),
        ):
            try:
                attempt()
                told.append("done")
            except OSError:
                told.append("refused")
        return told
"""


class InFiles:
    """A store whose values are ordinary files, as one on disk has them."""

    def __init__(self, store: ObjectStore, path: Path) -> None:
        self._store = store
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextlib.asynccontextmanager
    async def open(self, key: str, **rest: Any) -> AsyncIterator[ObjectView]:
        async with self._store.open(key, **rest) as view:
            self._path.write_bytes(view.data)
            with self._path.open("rb") as file:
                yield attrs.evolve(view, fd=file.fileno())


@pytest.mark.parametrize("level", list(IsolationLevel))
async def test_what_may_only_be_read_cannot_be_written(
    place: Any,
    single: Single,
    make_request: Any,
    store: ObjectStore,
    hostcalls: Any,
    tmp_path: Path,
    level: IsolationLevel,
) -> None:
    machine = await look_around(bwrap="bwrap", use_cgroups=True)
    if missing := machine.missing_for(level):
        pytest.skip(missing)
    await store.put("k", b"value" * 50_000)
    hostcalls.seen_as = lambda store: InFiles(store, tmp_path / "blob")
    config = {"isolation": "none"} if level is IsolationLevel.NONE else {}
    artifact = place.artifact("agent.py", VANDAL, required_isolation=level)
    async with single(artifact, **config) as instance:
        assert output_of(await instance.execute(make_request())) == ["refused"] * 4
    assert (tmp_path / "blob").read_bytes() == b"value" * 50_000
    assert hostcalls.files == 1


CROWDED = """
    import os, resource
    from spear_sdk import Context, function

    @function
    def main(ctx: Context) -> list:
        told = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        ctx.objects.stat("k")  # which loads what it takes
        for room in (0, 1, 100):
            kept = [os.dup(0)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (kept[0] + room, hard))
            try:
                told.append(len(ctx.objects.get("k")))
            except OSError as error:
                told.append(error.strerror)
            os.close(kept[0])
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return told
"""


async def test_a_worker_without_descriptors_is_told_and_goes_on(
    place: Any, single: Single, make_request: Any, store: ObjectStore
) -> None:
    await store.put("k", bytes(300_000))
    async with single(place.artifact("agent.py", CROWDED)) as instance:
        answer = output_of(await instance.execute(make_request()))
    assert answer[0] == "Too many open files"
    assert answer[-1] == 300_000


COUNTS = """
    import struct
    from spear_sdk import Context, ObjectConflictError, function

    @function
    def main(times: int, ctx: Context) -> int:
        objects, lost = ctx.objects, 0
        for _ in range(times):
            while True:
                found = objects.get("count")
                (number,) = struct.unpack("<q", found)
                try:
                    objects.put("count", struct.pack("<q", number + 1), expect=found.version)
                    break
                except ObjectConflictError as conflict:
                    assert conflict.current > found.version
                    lost += 1
        return lost
"""


@pytest.mark.parametrize("times", [300, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_two_agents_count_exactly(
    place: Any, make_request: Any, store: ObjectStore, times: int
) -> None:
    await store.put("count", struct.pack("<q", 0))
    lost: list[int] = []
    async with place.open() as runtime:
        artifact = place.artifact("agent.py", COUNTS)
        await runtime.prepare(artifact)

        async def count(instance: Any) -> None:
            lost.append(output_of(await instance.execute(make_request(b"%d" % times))))

        async with (
            runtime.open_instance(place.spec(artifact)) as one,
            runtime.open_instance(place.spec(artifact)) as other,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(count, one)
            nursery.start_soon(count, other)
    stat, value = await store.get("count")
    assert struct.unpack("<q", value) == (2 * times,)
    assert stat.version == 2 * times + 1
    assert len(lost) == 2


async def test_over_tcp_everything_goes_as_bytes(
    place: Any, make_channels: Any, make_request: Any, store: ObjectStore, hostcalls: Any
) -> None:
    place = attrs.evolve(place, context=attrs.evolve(place.context, channels=make_channels("tcp")))
    code = """
        import hashlib
        from spear_sdk import Context, function

        @function
        def main(ctx: Context) -> list:
            value = bytes(range(256)) * 40_000
            assert ctx.objects.put("k", value).size == len(value)
            with ctx.objects.open("k") as reader:
                pieces = hashlib.sha256()
                for piece in reader:
                    pieces.update(piece)
            got = ctx.objects.get("k")
            return [len(got), bytes(got) == value, pieces.hexdigest() == reader.stat.sha256]
    """
    async with place.open() as runtime:
        artifact = place.artifact("agent.py", code)
        await runtime.prepare(artifact)
        async with runtime.open_instance(place.spec(artifact)) as instance:
            answer = output_of(await instance.execute(make_request()))
    assert answer == [256 * 40_000, True, True]
    assert hostcalls.files == 0


ASYNC = """
    import asyncio
    from spear_sdk import Context, function

    @function
    async def main(number: int, ctx: Context) -> list:
        key, value = f"k/{number}", bytes([number]) * 300_000
        await ctx.objects.aput(key, value)
        got = await asyncio.gather(*(ctx.objects.aget(key) for _ in range(5)))
        async with ctx.objects.open(key) as reader:
            read = [piece async for piece in reader]
        return [all(bytes(one) == value for one in got), b"".join(read) == value]
"""


async def test_several_executions_of_one_worker_at_once(
    place: Any, single: Single, make_request: Any, store: ObjectStore
) -> None:
    answers: list[Any] = []
    artifact = place.artifact("agent.py", ASYNC, concurrency=8)
    async with single(artifact) as instance, trio.open_nursery() as nursery:

        async def run(number: int) -> None:
            answers.append(output_of(await instance.execute(make_request(b"%d" % number))))

        for number in range(8):
            nursery.start_soon(run, number)
    assert answers == [[True, True]] * 8
    assert len((await store.list("k/")).objects) == 8


SCENARIO = """
    from spear_sdk import Check, Delete, HostcallError, Put

    def scenario(objects):
        told = []

        def tell(what):
            try:
                found = what()
            except HostcallError as error:
                found = [type(error).__name__, error.code, getattr(error, "current", None)]
            if hasattr(found, "stat"):
                found = [bytes(found).decode(), found.stat]
            flat = lambda x: [flat(y) for y in x] if isinstance(x, list) else (
                [x.key, x.version, x.size, x.sha256, x.content_type, x.refs, x.pinned]
                if hasattr(x, "sha256") else x
            )
            told.append(flat(found))

        def write(key, **options):
            with objects.create(key, **options) as writer:
                writer.write(b"piece ")
                writer.write(b"by piece")
            return writer.stat

        def read(key):
            with objects.open(key) as reader:
                reader.seek(2)
                return [reader.read(3).decode(), reader.read().decode(), reader.stat]

        tell(lambda: objects.get("k"))
        tell(lambda: objects.put("k", b"one", expect=0, content_type="text/plain"))
        tell(lambda: objects.put("k", b"two", expect=0))
        tell(lambda: objects.put("k", b"two", expect=1, hashed=False))
        tell(lambda: objects.get("k"))
        tell(lambda: objects.get("k", version=1))
        tell(lambda: objects.stat("k"))
        tell(lambda: objects.put("k", b"three", expect="0" * 64))
        tell(lambda: objects.add_ref("k"))
        tell(lambda: objects.pin("k"))
        tell(lambda: objects.remove_ref("k"))
        tell(lambda: objects.remove_ref("k"))
        tell(lambda: objects.unpin("k"))
        tell(lambda: objects.unpin("k"))
        tell(lambda: objects.put("k", b"back"))
        tell(lambda: write("w", expect=0))
        tell(lambda: write("w", expect=0))
        tell(lambda: write("w", content_type="text/plain"))
        tell(lambda: read("w"))
        tell(lambda: objects.transact(Put("a", b"1"), Delete("k"), Check("x", 0)))
        tell(lambda: objects.transact(Put("a", b"2"), Check("w", 1)))
        tell(lambda: objects.transact(Delete("nobody")))
        tell(lambda: objects.list())
        tell(lambda: objects.list("w", limit=1))
        tell(lambda: objects.list(after="a"))
        tell(lambda: objects.delete("w", expect=1))
        tell(lambda: objects.delete("w"))
        tell(lambda: objects.delete("w"))
        return told
"""


async def test_the_test_kit_answers_as_a_node_does(
    place: Any, single: Single, make_request: Any, store: ObjectStore
) -> None:
    source = textwrap.dedent(SCENARIO)
    names: dict[str, Any] = {}
    exec(source, names)
    expected = json.loads(json.dumps(names["scenario"](FakeContext().objects)))
    main = "from spear_sdk import function\n@function\ndef main(ctx): return scenario(ctx.objects)"
    artifact = place.artifact("agent.py", source + main)
    async with single(artifact) as instance:
        assert output_of(await instance.execute(make_request())) == expected
