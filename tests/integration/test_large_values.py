"""Agents put large values through a pipe into a store on disk; and what may go wrong there."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from spear_core.api import IsolationLevel, Limits, ObjectGrants
from spear_core.client import connect
from spear_core.errors import StoreFullError
from spear_runtime_process._machine import look_around

MIB = 1 << 20
CONFIG = """
[stores]
objects = "lmdb"
"""
AGENT = b"""
import asyncio, fcntl, hashlib, json, os, socket, threading, time
from spear_sdk import Context, HostcallError, function
from spear_sdk import _pipes

fed = []

class Counted(_pipes.Feeding):
    def __init__(self, view):
        super().__init__(view)
        fed.append(len(view))

_pipes.Feeding = Counted

def pattern(size, seed=1):
    return hashlib.sha256(b"%d" % seed).digest() * (size // 32)

@function
def put(args: list, ctx: Context) -> list:
    key, size, seed, options = args
    fed.clear()
    value = pattern(size, seed)
    try:
        stat = ctx.objects.put(key, value, **options)
    except HostcallError as error:
        return [type(error).__name__, list(fed)]
    assert bytes(ctx.objects.get(key)) == value
    return [stat.version, stat.size, stat.sha256, list(fed)]

@function
async def many(count: int, ctx: Context) -> list:
    fed.clear()
    values = [pattern(9 << 20, number) for number in range(count)]
    beats = []

    async def beat():
        while True:
            await asyncio.sleep(0.001)
            beats.append(1)

    beating = asyncio.create_task(beat())
    await asyncio.gather(*(ctx.objects.aput(f"many/{n}", v) for n, v in enumerate(values)))
    beating.cancel()
    right = [bytes(await ctx.objects.aget(f"many/{n}")) == v for n, v in enumerate(values)]
    return [right, bool(beats)]

@function
def stream(size: int, ctx: Context) -> list:
    fed.clear()
    with ctx.objects.create("streamed") as writer:
        for piece in (b"small", pattern(size), b"small"):
            writer.write(piece)
    return [writer.stat.sha256, list(fed)]

def raw(ctx, verb, fd=None, beside=b"", **head):
    data = json.dumps(head).encode()
    payload = len(data).to_bytes(4, "little") + data + beside
    answer, _ = ctx._host.exchange(ctx, "objects." + verb, payload, fd)
    end = 4 + int.from_bytes(answer[:4], "little")
    return json.loads(answer[4:end])

def filled(value):
    end, start = os.pipe()
    def fill():
        try:
            os.write(start, value)
        except OSError:
            pass
        os.close(start)
    threading.Thread(target=fill, daemon=True).start()
    return end

def sealed():
    fd = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
    os.write(fd, bytes(2 << 20))
    return fd

def fifo():
    os.mkfifo(os.environ["TMPDIR"] + "/fifo")
    return os.open(os.environ["TMPDIR"] + "/fifo", os.O_RDWR)

SIZE = 2 << 20
LIES = {
    "file": (lambda: os.open(__file__, os.O_RDONLY), {}),
    "zeros": (lambda: os.open("/dev/zero", os.O_RDONLY), {}),
    "directory": (lambda: os.open(os.environ["TMPDIR"], os.O_RDONLY), {}),
    "event": (lambda: os.eventfd(1), {}),
    "memory": (sealed, {}),
    "socket": (lambda: socket.socketpair()[0].detach(), {}),
    "fifo": (fifo, {}),
    "ends early": (lambda: filled(bytes(SIZE - 1)), {}),
    "nothing": (lambda: filled(b""), {}),
    "more than announced": (lambda: filled(bytes(SIZE + 1)), {"size": SIZE + 1}),
    "vast": (lambda: filled(bytes(SIZE)), {"size": 1 << 60}),
    "beyond numbers": (lambda: filled(bytes(SIZE)), {"size": 1 << 200}),
    "negative": (lambda: filled(bytes(SIZE)), {"size": -1}),
    "none": (lambda: filled(bytes(SIZE)), {"size": 0}),
    "no size": (lambda: filled(bytes(SIZE)), {"size": None}),
    "beside": (lambda: filled(bytes(SIZE)), {"beside": b"x"}),
}

@function
def lies(ctx: Context) -> dict:
    told = {}
    for name, (make, more) in LIES.items():
        handle = raw(ctx, "create", key="k", size=SIZE)["handle"]
        fd = make()
        try:
            raw(ctx, "write", fd, **{"handle": handle, "size": SIZE} | more)
            raw(ctx, "commit", handle=handle)
            told[name] = "taken"
        except HostcallError as error:
            told[name] = error.code
            try:
                raw(ctx, "commit", handle=handle)
                told[name] = "committed all the same"
            except HostcallError as error:
                pass
        os.close(fd)
    return told

@function
def keeps(ctx: Context) -> list:
    # it has both ends of the pipe, and goes on writing when its object is there
    told = []
    for end_of in (0, 1):
        ends = os.pipe()
        value = pattern(SIZE, 7)
        def fill():
            left = memoryview(value)
            while left:
                left = left[os.write(ends[1], left):]
        thread = threading.Thread(target=fill)
        thread.start()
        handle = raw(ctx, "create", key="k", size=SIZE)["handle"]
        raw(ctx, "write", ends[end_of], handle=handle, size=SIZE)
        stat = raw(ctx, "commit", handle=handle)["stat"]
        thread.join()
        os.write(ends[1], b"vandal")
        told.append(stat["sha256"] == hashlib.sha256(value).hexdigest())
        told.append(bytes(ctx.objects.get("k")) == value)
        told.append(os.read(ends[0], 100).decode())
    return told

@function
def stalls(args: list, ctx: Context) -> None:
    count, how = args
    kept = []

    def stall(number):
        end, start = os.pipe()
        kept.append(start)
        mine = os.dup(end)
        fcntl.fcntl(mine, fcntl.F_SETFL, 0)  # the file we share may block, then
        handle = raw(ctx, "create", key=f"stalled/{number}", size=32 << 20)["handle"]
        os.write(start, bytes(50_000))
        try:
            raw(ctx, "write", end, handle=handle, size=32 << 20)
        except Exception:
            pass

    for number in range(count):
        threading.Thread(target=stall, args=(number,), daemon=True).start()
    ctx.objects.put("held", bytes(10))
    ctx.objects.add_ref("held")
    while len(kept) < count:
        time.sleep(0.01)
    ctx.objects.put("ready", b"")
    if how == "die":
        os.kill(os.getpid(), 9)
    while how == "cancel":
        time.sleep(1)

@function
def drips(args: list, ctx: Context) -> None:
    # a byte now and then, so that there is always something to be read soon; for ever
    count, _ = args
    def drip():
        end, start = os.pipe()
        def drop():
            while True:
                os.write(start, b"x")
                time.sleep(0.0005)
        threading.Thread(target=drop, daemon=True).start()
        handle = raw(ctx, "create", key="dripped", size=32 << 20)["handle"]
        raw(ctx, "write", end, handle=handle, size=32 << 20)
    for _ in range(count):
        threading.Thread(target=drip, daemon=True).start()
    ctx.objects.put("ready", b"")
    while True:
        time.sleep(1)
"""


@asynccontextmanager
async def deployed(node: Any) -> AsyncIterator[Any]:
    """A client of that node, where the agent above is, and its reader."""
    async with connect(node.url) as client:
        await client.deploy(AGENT, name="agent", filename="agent.py")
        may = ObjectGrants(read=("agent/",))
        await client.deploy(AGENT, name="reader", filename="agent.py", objects=may)
        yield client


@asynccontextmanager
async def nothing_left(client: Any, node: Any) -> AsyncIterator[None]:
    """When the block has ended, the store has nothing that it had not before, or soon so."""

    async def content() -> tuple[int, set[Path], set[str]]:
        keys = {stat.key for stat in (await client.objects.list()).objects}
        files = set(node.state.glob("plugins/*/objects/blobs/*"))
        return (await client.objects.usage()).bytes, files, keys

    bytes_before, files_before, keys_before = await content()
    yield
    with trio.fail_after(60):
        while True:
            used, files, keys = await content()
            if used <= bytes_before and files <= files_before and keys <= keys_before:
                return
            await trio.sleep(0.02)


def digest(size: int, seed: int) -> str:
    return hashlib.sha256(hashlib.sha256(b"%d" % seed).digest() * (size // 32)).hexdigest()


async def test_large_values_go_through_pipes(node: Any) -> None:
    async with deployed(node) as client, nothing_left(client, node):
        for version, (size, fed) in enumerate(
            [
                (8 * MIB - 32, []),
                (8 * MIB, [8 * MIB]),
                (64 * MIB, [64 * MIB]),
                (64 * MIB + 32, [64 * MIB, 32]),
            ],
            start=1,
        ):
            answer = (await client.invoke("agent:put", ["k", size, version, {}])).json()
            assert answer == [version, size, digest(size, version), fed]
            assert (await client.objects.stat("agent/k")).sha256 == answer[2]
        size, fed = 8 * MIB, [8 * MIB]
        answer = (await client.invoke("agent:put", ["k", size, 5, {"hashed": False}])).json()
        assert answer == [5, size, "", fed]
        answer = (await client.invoke("agent:put", ["k", size, 6, {"expect": 1}])).json()
        assert answer == ["ObjectConflictError", fed]
        assert (await client.objects.stat("agent/k")).version == 5
        answer = (await client.invoke("reader:put", ["/agent/k", size, 6, {}])).json()
        assert answer == ["ObjectForbiddenError", []]
        await client.objects.delete("agent/k")


async def test_large_pieces_go_through_pipes(node: Any) -> None:
    async with deployed(node) as client:
        answer = (await client.invoke("agent:stream", 20 * MIB)).json()
        value = b"small" + hashlib.sha256(b"1").digest() * (20 * MIB // 32) + b"small"
        assert answer == [hashlib.sha256(value).hexdigest(), [20 * MIB]]
        assert (await client.objects.get("agent/streamed")).data == value


async def test_many_at_once_from_async_code(node: Any) -> None:
    """More than a task may have open: the others go by another way, and all of them arrive."""
    async with deployed(node) as client:
        assert (await client.invoke("agent:many", 36)).json() == [[True] * 36, True]


async def test_an_agent_that_may_not_have_another_thread(node: Any) -> None:
    machine = await look_around(bwrap="bwrap", use_cgroups=True)
    if not machine.cgroups:
        pytest.skip(machine.cgroups_reason)
    async with deployed(node) as client:
        await client.deploy(AGENT, name="narrow", filename="agent.py", limits=Limits(processes=2))
        answer = (await client.invoke("narrow:put", ["k", 9 * MIB, 1, {}])).json()
        assert answer == [1, 9 * MIB, digest(9 * MIB, 1), []]


async def test_in_namespaces_of_its_own(node: Any) -> None:
    level = IsolationLevel.NAMESPACES
    machine = await look_around(bwrap="bwrap", use_cgroups=True)
    if missing := machine.missing_for(level):
        pytest.skip(missing)
    async with deployed(node) as client:
        await client.deploy(AGENT, name="apart", filename="agent.py", required_isolation=level)
        answer = (await client.invoke("apart:put", ["k", 9 * MIB, 3, {}])).json()
        assert answer == [1, 9 * MIB, digest(9 * MIB, 3), [9 * MIB]]


async def test_without_isolation_and_without_room(start_node: Callable[..., Any]) -> None:
    """What has no room is refused before anything is read."""
    config = (
        f"{CONFIG}[plugins.store-lmdb]\nobjects_bytes = {20 * MIB}\n"
        '[plugins.runtime-process]\nisolation = "none"\n'
    )
    async with deployed(start_node(config)) as client:
        answer = (await client.invoke("agent:put", ["k", 12 * MIB, 1, {}])).json()
        assert answer == [1, 12 * MIB, digest(12 * MIB, 1), [12 * MIB]]
        answer = (await client.invoke("agent:put", ["other", 12 * MIB, 1, {}])).json()
        assert answer == ["StoreFullError", []]
        answer = (await client.invoke("agent:put", ["k", 19 * MIB, 1, {}])).json()
        assert answer[0] == 2
        with pytest.raises(StoreFullError):
            await client.objects.put("too much", bytes(2 * MIB))
        assert (await client.objects.usage()).bytes == 19 * MIB


async def test_lies_are_refused_and_leave_nothing(node: Any) -> None:
    async with deployed(node) as client, nothing_left(client, node):
        told = (await client.invoke("agent:lies")).json()
        assert set(told.values()) == {"invalid_argument"}, told


async def test_nobody_changes_a_value_by_the_pipe_it_came_through(node: Any) -> None:
    async with deployed(node) as client:
        assert (await client.invoke("agent:keeps")).json() == [True, True, "vandal"] * 2


@pytest.mark.parametrize(
    ("function", "how"),
    [("stalls", "die"), ("stalls", "end"), ("stalls", "cancel"), ("drips", "cancel")],
)
async def test_an_agent_gone_in_mid_put_leaves_nothing(node: Any, function: str, how: str) -> None:
    """And as long as it is there, and more of its values wait than the store has threads, others
    are served."""
    async with deployed(node) as client, nothing_left(client, node):
        before = (await client.objects.usage()).bytes
        revision = (await client.objects.list()).revision
        task = await client.submit(f"agent:{function}", [10, how])
        with trio.fail_after(60):
            async with client.objects.watch("agent/ready", start_revision=revision + 1) as changes:
                await changes.receive()
        if how == "cancel":
            with trio.fail_after(240):
                for _ in range(5):
                    await client.objects.put("mine", bytes(3 * MIB))
                    answer = await client.invoke("agent:put", ["served", 9 * MIB, 1, {}])
                    assert answer.json()[1:] == [9 * MIB, digest(9 * MIB, 1), [9 * MIB]]
                while (await client.objects.usage()).bytes < before + 320 * MIB:  # noqa: ASYNC110
                    await trio.sleep(0.02)  # the last of its threads has yet to begin
            await client.objects.delete("mine")
            await client.objects.delete("agent/served")
            await task.cancel()
        await client.call(lambda api: api.get_task(task.task_id, wait=True))
        await client.objects.delete("agent/ready")
