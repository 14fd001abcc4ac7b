"""Inputs that are objects, results that are, and what a task holds: a node with a steered runtime
and a store that the tests look into."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core.api import (
    ArtifactUpload,
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    HostcallContext,
    HostcallProvider,
    HostcallSpec,
    InvokeRequest,
    Limits,
    ObjectGrants,
    SpearletConfig,
    TaskConfig,
    TaskState,
)
from spear_core.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    NodeStoppingError,
    ObjectForbiddenError,
    ObjectNotFoundError,
    StoreFullError,
)
from spear_core.node.paths import StatePaths
from spear_core.plugins import Owned

UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code")
SMALL = SpearletConfig(execution=ExecutionConfig(inline_output_bytes=10, max_input_bytes=1000))
PASSING = attrs.evolve(SMALL, tasks=TaskConfig(durable="off"))
NOTHING = ObjectGrants()
OBJECT = InvokeRequest(function="f", input_object="a/in")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(60):
        while not await condition():  # noqa: ASYNC110 - it becomes true elsewhere
            await trio.sleep(0.01)


async def keys(disk: Any) -> list[str]:
    return [stat.key for stat in (await disk.objects.list()).objects if stat.key[0] == "."]


# ---- inputs


async def test_the_input_is_the_object_as_it_was_when_the_task_was_accepted(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    go, seen = trio.Event(), []

    async def look(request: ExecutionRequest) -> ExecutionResponse:
        await go.wait()
        seen.append((request.payload, request.content_type))
        return ExecutionResponse.completed(b"")

    runtime.behaviour = look
    async with open_steered_node(SMALL, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        await node.api.objects.put("a/in", b"first", content_type="text/plain")
        first = await node.api.invoke(attrs.evolve(OBJECT, mode=ExecutionMode.ASYNC))
        await node.api.objects.put("a/in", b"second")
        second = await node.api.invoke(
            attrs.evolve(OBJECT, mode=ExecutionMode.ASYNC, content_type="image/png")
        )
        await node.api.objects.delete("a/in")
        go.set()
        for accepted in (first, second):
            task = await node.api.get_task(accepted.task.task_id, wait=True)
            assert task.state is TaskState.COMPLETED
        assert sorted(seen) == [(b"first", "text/plain"), (b"second", "image/png")]


async def test_inputs_that_cannot_be(open_steered_node: Any, disk: Any) -> None:
    async with open_steered_node(SMALL, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        with pytest.raises(ObjectNotFoundError, match="a/in"):
            await node.api.invoke(OBJECT)
        await node.api.objects.put("a/in", bytes(1001))
        with pytest.raises(InvalidRequestError, match=r"1001 bytes.*1000.*ctx\.objects"):
            await node.api.invoke(OBJECT)
        await node.api.objects.put("a/in", bytes(1000))
        assert (await node.api.invoke(OBJECT)).success
        with pytest.raises(InvalidRequestError, match="payload"):
            await node.api.invoke(attrs.evolve(OBJECT, payload=b"x"))
        with pytest.raises(InvalidRequestError, match="'/'"):
            await node.api.invoke(attrs.evolve(OBJECT, input_object="/a/in"))
        with pytest.raises(InvalidRequestError, match="input_object"):
            async with node.api.stream(OBJECT):
                raise AssertionError
        assert len(await node.api.list_tasks()) == 1


async def test_a_task_keeps_an_input_that_lives_by_references_and_lets_go_at_its_end(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    go = trio.Event()

    async def wait(request: ExecutionRequest) -> ExecutionResponse:
        await go.wait()
        return ExecutionResponse.completed(b"")

    runtime.behaviour = wait
    async with open_steered_node(SMALL, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        objects = node.api.objects
        await objects.put("a/in", b"1")
        await objects.add_ref("a/in", holder="me")
        accepted = await node.api.invoke(attrs.evolve(OBJECT, mode=ExecutionMode.ASYNC))
        task_id = accepted.task.task_id

        async def held() -> bool:
            return any(h.name == f"task/{task_id}" for h in await objects.holders("a/in"))

        await until(held)
        (holder, _) = sorted(
            await objects.holders("a/in"), key=lambda h: h.name != f"task/{task_id}"
        )
        assert holder.ttl is not None  # a node that is gone holds nothing for ever
        assert await objects.remove_ref("a/in", holder="me") is not None
        go.set()
        await node.api.get_task(task_id, wait=True)

        async def collected() -> bool:
            return not (await objects.list("a/")).objects

        await until(collected)


async def test_an_input_that_nobody_refers_to_outlives_its_task(
    open_steered_node: Any, disk: Any
) -> None:
    async with open_steered_node(SMALL, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        await node.api.objects.put("a/in", b"1")
        for _ in range(3):
            assert (await node.api.invoke(OBJECT)).success
    assert (await disk.objects.stat("a/in")).refs == 0


async def test_an_idempotency_key_finds_its_task_whatever_became_of_the_object(
    open_steered_node: Any, disk: Any
) -> None:
    request = attrs.evolve(OBJECT, idempotency_key="k")
    async with open_steered_node(SMALL, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        await node.api.objects.put("a/in", b"1", content_type="text/plain")
        first = await node.api.invoke(request)
        await node.api.objects.put("a/in", b"2")
        assert (await node.api.invoke(request)).task.task_id == first.task.task_id
        await node.api.objects.delete("a/in")
        assert (await node.api.invoke(request)).task.task_id == first.task.task_id
        with pytest.raises(IdempotencyConflictError):
            await node.api.invoke(attrs.evolve(request, input_object="a/other"))
        with pytest.raises(IdempotencyConflictError):
            await node.api.invoke(attrs.evolve(request, input_object="", payload=b"1"))
        assert len(await node.api.list_tasks()) == 1


async def test_a_node_that_stops_takes_no_input_either(open_steered_node: Any, disk: Any) -> None:
    async with open_steered_node(SMALL, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        await node.api.objects.put("a/in", b"1")
        await node.drain()
        with pytest.raises(NodeStoppingError):
            await node.api.invoke(OBJECT)


# ---- results


@pytest.mark.parametrize("config", [SMALL, PASSING])
async def test_a_large_output_is_an_object_for_as_long_as_its_task_is_kept(
    open_steered_node: Any, disk: Any, config: SpearletConfig
) -> None:
    config = attrs.evolve(config, tasks=attrs.evolve(config.tasks, keep_finished=2))
    async with open_steered_node(config, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        task = (await node.api.invoke(InvokeRequest(function="f", payload=b"x" * 11))).task
        result = task.result
        assert (result.output, result.object_size) == (b"", 11)
        assert result.object_key == f".spear/results/{task.task_id}"
        stat, value = await node.api.objects.get(result.object_key)
        assert (value, stat.content_type) == (b"x" * 11, result.content_type)
        (holder,) = await node.api.objects.holders(result.object_key)
        assert holder.name.startswith(f"task/{task.task_id}")
        assert (await node.api.get_task(task.task_id)).result == result
        (listed,) = await node.api.list_tasks()
        assert listed.result.object_key == result.object_key
        for payload in (b"x" * 10, b"y" * 10):
            small = (await node.api.invoke(InvokeRequest(function="f", payload=payload))).task
            assert (small.result.output, small.result.object_key) == (payload, "")

        async def dropped() -> bool:
            return await keys(disk) == []

        await until(dropped)


async def test_kept_results_count_for_their_limit_wherever_they_are(
    open_steered_node: Any, disk: Any
) -> None:
    config = attrs.evolve(PASSING, tasks=TaskConfig(durable="off", keep_finished_bytes=100))
    async with open_steered_node(config, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        for _ in range(5):
            await node.api.invoke(InvokeRequest(function="f", payload=bytes(60)))

        async def one_left() -> bool:
            return len(await keys(disk)) == 1

        await until(one_left)
        assert len(await node.api.list_tasks()) == 1


async def test_an_output_that_is_too_large_is_no_object_either(
    open_steered_node: Any, disk: Any
) -> None:
    async with open_steered_node(PASSING, disk=disk) as node:
        await node.api.deploy(attrs.evolve(UPLOAD, limits=Limits(output_bytes=20)))
        task = (await node.api.invoke(InvokeRequest(function="f", payload=bytes(21)))).task
        assert task.result.error.code == "resource_exhausted"
        assert task.result.object_key == ""
        assert await keys(disk) == []


async def test_a_store_that_is_full_leaves_the_output_with_its_task(
    open_steered_node: Any, disk: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def full(*args: Any, **options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise StoreFullError("no room")

    monkeypatch.setattr(disk.objects, "put", full)
    async with open_steered_node(PASSING, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        task = (await node.api.invoke(InvokeRequest(function="f", payload=bytes(50)))).task
        assert (task.state, task.result.output) == (TaskState.COMPLETED, bytes(50))
        assert task.result.object_key == ""
    assert "no room" in StatePaths(tmp_path / "state").system_log.read_text()


async def test_a_store_that_breaks_costs_a_task_and_the_node_nothing(
    open_steered_node: Any, disk: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A store is a plugin, and raises what it likes."""

    def broken(name: str) -> Callable[..., Awaitable[Any]]:
        async def method(*args: Any, **options: Any) -> Any:
            await trio.lowlevel.checkpoint()
            raise RuntimeError(f"a bug in {name}")

        return method

    for name in ("put", "release"):
        monkeypatch.setattr(disk.objects, name, broken(name))
    async with open_steered_node(PASSING, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        for _ in range(2):
            task = (await node.api.invoke(InvokeRequest(function="f", payload=bytes(50)))).task
            assert (task.state, task.result.output) == (TaskState.COMPLETED, bytes(50))
    log = StatePaths(tmp_path / "state").system_log.read_text()
    assert "a bug in put" in log
    assert "a bug in release" in log


async def test_a_task_that_is_cancelled_while_its_output_is_stored_leaves_none(
    open_steered_node: Any, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = trio.Event()

    async def held(*args: Any, **options: Any) -> Any:
        stored.set()
        await trio.sleep_forever()

    async with open_steered_node(PASSING, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        monkeypatch.setattr(disk.objects, "add_ref", held)
        request = InvokeRequest(function="f", payload=bytes(50), mode=ExecutionMode.ASYNC)
        task_id = (await node.api.invoke(request)).task.task_id
        await stored.wait()
        assert await keys(disk) == [f".spear/results/{task_id}"]
        assert (await node.api.cancel_task(task_id)).state is TaskState.CANCELLED

        async def dropped() -> bool:
            return await keys(disk) == []

        await until(dropped)


# ---- what running code does


class Acting(HostcallProvider):
    """A hostcall that does what a test says, in the name of whoever calls."""

    def __init__(self) -> None:
        self.act: Callable[[HostcallContext], Awaitable[None]]

    async def call(self, caller: HostcallContext, name: str, payload: bytes) -> bytes:
        await self.act(caller)
        return b""


@attrs.frozen
class NoConfig:
    pass


Act = Callable[[HostcallContext], Awaitable[None]]


@pytest.fixture
def open_acting_node(open_steered_node: Any, runtime: Any, disk: Any) -> Callable[..., Any]:
    """A node whose function ``f`` does ``act`` and echoes; ``f:echo`` only echoes."""
    acting = Acting()

    async def behave(request: ExecutionRequest) -> ExecutionResponse:
        if request.entry != "echo":
            await runtime.context.hostcalls.call(request.execution_id, "test.act", b"")
        return ExecutionResponse.completed(request.payload)

    @asynccontextmanager
    async def opened(context: Any, config: Any) -> AsyncIterator[HostcallProvider]:
        yield acting

    spec = HostcallSpec(names=frozenset({"test.act"}), open=opened, config_cls=NoConfig)

    @asynccontextmanager
    async def open_it(act: Act, *, grants: ObjectGrants = NOTHING) -> AsyncIterator[Any]:
        acting.act = act
        runtime.behaviour = behave
        async with open_steered_node(
            PASSING,
            disk=disk,
            hostcalls={"test.act": Owned(spec, "acting")},
            configs={"acting": {NoConfig: NoConfig()}},
        ) as node:
            await node.api.deploy(attrs.evolve(UPLOAD, objects=grants))
            yield node

    return open_it


async def test_a_parent_gets_a_large_output_whole(open_acting_node: Any) -> None:
    outputs: list[bytes] = []

    async def act(caller: HostcallContext) -> None:
        functions = caller.functions
        assert functions is not None
        request = InvokeRequest(function="f:echo", payload=bytes(50))
        started = await functions.start(request)
        for task in (
            await functions.invoke(request),
            await functions.invoke(attrs.evolve(request, detached=True)),
            await functions.wait(started.task_id),
        ):
            assert task.result is not None
            outputs.append(task.result.output)

    async with open_acting_node(act) as node:
        assert (await node.api.invoke(InvokeRequest(function="f"))).success
    assert outputs == [bytes(50)] * 3


async def test_a_child_is_given_only_what_its_parent_may_read(open_acting_node: Any) -> None:
    outputs: list[bytes] = []

    async def act(caller: HostcallContext) -> None:
        functions = caller.functions
        assert functions is not None
        for key in ("in", "/b/in"):
            request = InvokeRequest(function="f:echo", input_object=key)
            task = await functions.invoke(request)
            assert task.result is not None
            outputs.append(task.result.output)
        with pytest.raises(ObjectForbiddenError):
            await functions.invoke(InvokeRequest(function="f:echo", input_object="/c/in"))

    async with open_acting_node(act, grants=ObjectGrants(read=("b/",))) as node:
        for key in ("f/in", "b/in", "c/in"):
            await node.api.objects.put(key, key.encode())
        assert (await node.api.invoke(InvokeRequest(function="f"))).success
    assert outputs == [b"f/in", b"b/in"]


async def test_the_references_of_a_task_end_with_it(open_acting_node: Any, disk: Any) -> None:
    async def act(caller: HostcallContext) -> None:
        assert caller.objects is not None
        await caller.objects.put("kept", b"1")
        await caller.objects.put("dropped", b"2")
        await caller.objects.add_ref("kept")
        await caller.objects.add_ref("dropped")
        await disk.objects.add_ref("f/kept", holder="somebody")
        (_, mine) = await caller.objects.holders("kept")
        assert (mine.name, mine.refs) == (f"task/{caller.task_id}", 1)
        assert mine.ttl is not None

    async with open_acting_node(act) as node:
        assert (await node.api.invoke(InvokeRequest(function="f"))).success

        async def let_go() -> bool:
            return [s.key for s in (await disk.objects.list()).objects] == ["f/kept"]

        await until(let_go)
        assert [h.name for h in await disk.objects.holders("f/kept")] == ["somebody"]


async def test_what_a_task_holds_is_let_go_also_when_the_node_stops_with_it(
    open_acting_node: Any, disk: Any
) -> None:
    holding = trio.Event()

    async def act(caller: HostcallContext) -> None:
        assert caller.objects is not None
        await caller.objects.put("dropped", b"2")
        await caller.objects.add_ref("dropped")
        holding.set()
        await trio.sleep_forever()

    async with open_acting_node(act) as node:
        await node.api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))
        await holding.wait()
        node.hurry()
    assert (await disk.objects.list("f/")).objects == ()


async def test_a_reference_that_comes_too_late_is_let_go_too(
    open_acting_node: Any, runtime: Any, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostcall may end after the execution that made it."""
    taking, ended, taken = trio.Event(), trio.Event(), trio.Event()
    add_ref = disk.objects.add_ref

    async def slow(key: str, *, holder: str = "") -> Any:
        taking.set()
        await ended.wait()
        stat = await add_ref(key, holder=holder)
        taken.set()
        return stat

    monkeypatch.setattr(disk.objects, "add_ref", slow)

    async def act(caller: HostcallContext) -> None:
        assert caller.objects is not None
        await caller.objects.put("x", b"1")
        await caller.objects.add_ref("x")

    async with trio.open_nursery() as nursery, open_acting_node(act) as node:

        async def behave(request: ExecutionRequest) -> ExecutionResponse:
            call = runtime.context.hostcalls.call
            nursery.start_soon(call, request.execution_id, "test.act", b"")
            await taking.wait()
            return ExecutionResponse.completed(b"")

        runtime.behaviour = behave
        assert (await node.api.invoke(InvokeRequest(function="f"))).success
        ended.set()
        await taken.wait()

        async def let_go() -> bool:
            return not (await disk.objects.list("f/")).objects

        await until(let_go)


async def test_references_are_renewed_for_as_long_as_a_task_runs(
    open_acting_node: Any, disk: Any, autojump_clock: trio.testing.MockClock
) -> None:
    done = trio.Event()

    async def act(caller: HostcallContext) -> None:
        assert caller.objects is not None
        await caller.objects.put("x", b"1")
        await caller.objects.add_ref("x")
        await trio.sleep(10_000)
        assert [h.refs for h in await caller.objects.holders("x")] == [1]
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.objects.release_silent)
        async with open_acting_node(act) as node:
            await node.api.invoke(InvokeRequest(function="f", timeout_s=20_000.0))
        nursery.cancel_scope.cancel()
    assert done.is_set()


# ---- a node that starts


async def test_results_that_no_task_is_known_for_are_swept(
    open_steered_node: Any, disk: Any
) -> None:
    async with open_steered_node(SMALL, disk=disk) as node:
        await node.api.deploy(UPLOAD)
        task = (await node.api.invoke(InvokeRequest(function="f", payload=bytes(50)))).task
    key = task.result.object_key
    for number in range(3):
        await disk.objects.put(f".spear/results/t-{number}", b"left")
        await disk.objects.add_ref(f".spear/results/t-{number}", holder=f"task/t-{number}/result")
    async with open_steered_node(SMALL, disk=disk) as node:

        async def swept() -> bool:
            return await keys(disk) == [key]

        await until(swept)
        again = await node.api.get_task(task.task_id)
        assert again.result.object_key == key
        assert (await node.api.objects.get(key))[1] == bytes(50)
