"""What ``NodeApi`` and ``FrontDoorSpec`` promise, held by a real node over its local socket."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import (
    ArtifactUpload,
    ExecutionMode,
    InstanceState,
    InvokeRequest,
    IsolationLevel,
    LogEntry,
    NodeApi,
    TaskInfo,
    TaskState,
)
from spear_core.builtins.local_socket import connect
from spear_core.errors import (
    ArtifactInUseError,
    ArtifactNotFoundError,
    InvalidRequestError,
    IsolationUnavailableError,
    NodeStoppingError,
    NodeUnreachableError,
    ResourceExhaustedError,
    RuntimeNotFoundError,
    SpearError,
    TaskNotFoundError,
    UnsupportedArtifactError,
)

DATA = Path(__file__).parents[1] / "data"
CAT_WASM = (DATA / "cat.wat").read_text()
LOOP_WASM = '(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'
AGENT = """
import time

from spear_sdk import Context, function


@function
def echo(data: bytes) -> bytes:
    return data


@function
def fail(text: str) -> str:
    raise ValueError(text)


@function
def nap(seconds: str, context: Context) -> str:
    context.log.info("napping for %s s", seconds)
    time.sleep(float(seconds))
    return f"slept {seconds}"


@function
def wait(text: str, context: Context) -> str:
    # until somebody puts an object under that name
    context.log.info("waiting for %s", text)
    while not context.objects.list("go"):
        time.sleep(0.01)
    return f"waited for {text}"


@function
def chatter(lines: str, context: Context) -> str:
    for number in range(int(lines)):
        context.log.info("%d", number)
    return lines
"""
FILES = {
    "wasm": ("cat.wat", CAT_WASM),
    "command": ("cat.sh", "#!/bin/sh\ncat\n"),
    "agent": ("agent.py", AGENT),
}
ASYNC = ExecutionMode.ASYNC
_numbers = iter(range(10_000))

Process = Any
Deploy = Callable[..., Awaitable[str]]


@pytest.fixture
async def api(node: Process) -> AsyncIterator[NodeApi]:
    async with connect(node.url) as client:
        yield client


def upload(kind: str, name: str = "", content: str = "") -> ArtifactUpload:
    filename, code = FILES[kind]
    return ArtifactUpload(
        name=name or f"{kind}-{next(_numbers)}",
        filename=filename,
        content=(content or code).encode(),
        entry="echo" if kind == "agent" else "",
    )


async def deployed(api: NodeApi, kind: str) -> str:
    """Deploy one of the files under a new name."""
    return (await api.deploy(upload(kind))).name


async def start(api: NodeApi, function: str, payload: bytes = b"") -> str:
    """Start a task and return its id."""
    request = InvokeRequest(function=function, payload=payload, mode=ASYNC)
    return (await api.invoke(request)).task.task_id


async def running(api: NodeApi, task_id: str) -> TaskInfo:
    """The task, once it runs."""
    with trio.fail_after(60):
        while (task := await api.get_task(task_id)).state is TaskState.PENDING:  # noqa: ASYNC110
            await trio.sleep(0.01)  # no message tells when a task begins
    assert task.state is TaskState.RUNNING
    return task


async def instances_of(api: NodeApi, name: str) -> list[Any]:
    return [i for i in await api.list_instances() if i.artifact.partition("@")[0] == name]


# invoke -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
async def test_sync_waits_for_the_end_and_has_everything(
    api: NodeApi, node: Process, kind: str
) -> None:
    before = time.time()
    name = await deployed(api, kind)
    payload = bytes(range(256)) * 40
    response = await api.invoke(InvokeRequest(function=name, payload=payload))
    task, result = response.task, response.task.result
    assert (response.success, response.message) == (True, "completed")
    assert (response.status_endpoint, response.estimated_completion_ms) == ("", 0)
    assert task.state is TaskState.COMPLETED
    assert task.function.startswith(f"{name}@1")
    assert task.started_at is not None
    assert task.completed_at is not None
    assert before < task.created_at <= task.started_at <= task.completed_at < time.time()
    assert result is not None
    assert (result.output, result.error, result.attempt) == (payload, None, 1)
    assert 0 < result.execution_time_ms / 1000 <= task.completed_at - task.created_at + 0.01
    assert result.instance_id
    assert result.node_id == (await api.status()).node_id


@pytest.mark.parametrize("kind", FILES)
async def test_async_answers_once_it_is_queued(api: NodeApi, kind: str) -> None:
    name = await deployed(api, kind)
    request = InvokeRequest(function=name, payload=b"x", mode=ASYNC, timeout_s=12.5)
    response = await api.invoke(request)
    assert (response.success, response.task.result) == (True, None)
    assert response.status_endpoint == f"/status/{response.task.execution_id}"
    assert response.estimated_completion_ms == 12_500  # nothing is known yet
    by_task = await api.get_task(response.task.task_id, wait=True)
    assert by_task.result is not None
    assert by_task.result.output == b"x"
    assert await api.get_task(response.task.execution_id) == by_task
    assert await api.get_task(response.status_endpoint) == by_task
    again = await api.invoke(request)
    assert 0 <= again.estimated_completion_ms < 12_500


async def test_a_task_that_fails_or_times_out_is_an_answer(api: NodeApi) -> None:
    agent = await deployed(api, "agent")
    loop = (await api.deploy(upload("wasm", content=LOOP_WASM))).name
    for request, state, code in (
        (InvokeRequest(function=f"{agent}:fail", payload=b"boom"), TaskState.FAILED, ""),
        (InvokeRequest(function=f"{agent}:absent"), TaskState.FAILED, ""),
        (InvokeRequest(function=loop, timeout_s=0.2), TaskState.TIMEOUT, "deadline_exceeded"),
        (
            InvokeRequest(function=f"{agent}:nap", payload=b"9", timeout_s=0.2),
            TaskState.TIMEOUT,
            "deadline_exceeded",
        ),
    ):
        response = await api.invoke(request)
        assert not response.success
        assert response.task.state is state
        assert response.task.result is not None
        assert response.task.result.error is not None
        assert response.message == response.task.result.error.message
        assert code in response.task.result.error.code
        assert await api.get_task(response.task.task_id) == response.task


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"function": "absent"}, ArtifactNotFoundError),
        ({"function": "NAME@7"}, ArtifactNotFoundError),
        ({"function": "NAME@one"}, InvalidRequestError),
        ({"function": ""}, InvalidRequestError),
        ({"timeout_s": 0.0}, InvalidRequestError),
        ({"payload": bytes((64 << 20) + 1)}, InvalidRequestError),
    ],
    ids=["no-name", "no-version", "malformed", "empty", "timeout", "too-large"],
)
async def test_what_invoke_refuses_makes_no_task(
    api: NodeApi, wrong: dict[str, Any], error: type[SpearError]
) -> None:
    name = await deployed(api, "wasm")
    fields = {"function": name, **wrong}
    fields["function"] = fields["function"].replace("NAME", name)
    before = await api.list_tasks()
    with pytest.raises(error):
        await api.invoke(InvokeRequest(**fields))
    assert await api.list_tasks() == before


async def test_cancelling_a_sync_call_cancels_its_task_and_nothing_else(api: NodeApi) -> None:
    name = await deployed(api, "agent")
    other = await start(api, f"{name}:nap", b"1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(api.invoke, InvokeRequest(function=f"{name}:nap", payload=b"600"))
        with trio.fail_after(60):
            while (newest := (await api.list_tasks(limit=1))[0]).task_id == other:  # noqa: ASYNC110
                await trio.sleep(0.01)  # no message tells of a task that another call made
        await running(api, newest.task_id)
        nursery.cancel_scope.cancel()
    with trio.fail_after(60):
        ended = await api.get_task(newest.task_id, wait=True)
    assert ended.state is TaskState.CANCELLED
    assert (await api.get_task(other, wait=True)).state is TaskState.COMPLETED


@pytest.mark.alone
async def test_a_full_node_refuses_at_once_and_starts_nothing(
    start_node: Callable[[str], Process],
) -> None:
    node = start_node("[execution]\nmax_concurrent_tasks = 1\nmax_queued_tasks = 1\n")
    async with connect(node.url) as api:
        name = await deployed(api, "agent")
        first, second = [await start(api, f"{name}:nap", b"600") for _ in range(2)]
        with trio.fail_after(60), pytest.raises(ResourceExhaustedError) as refused:
            await start(api, f"{name}:nap", b"600")
        assert refused.value.retryable
        assert refused.value.retry_after is not None
        assert [t.task_id for t in await api.list_tasks()] == [second, first]
        queued = await api.cancel_task(second)
        assert (queued.state, queued.started_at) == (TaskState.CANCELLED, None)
        await api.cancel_task(first)
        assert (await api.invoke(InvokeRequest(function=name, payload=b"x"))).success


# Tasks --------------------------------------------------------------------------------------------


async def test_an_unknown_task_is_not_found_whatever_is_asked(api: NodeApi) -> None:
    for ask in (
        api.get_task("t-absent"),
        api.get_task("t-absent", wait=True),
        api.cancel_task("t-absent"),
        api.read_log("t-absent"),
        api.read_log("../../node", wait=True),
    ):
        with pytest.raises(TaskNotFoundError):
            await ask


async def test_tasks_are_listed_newest_first_without_outputs(api: NodeApi) -> None:
    name = await deployed(api, "wasm")
    ids = [
        (await api.invoke(InvokeRequest(function=name, payload=b"x"))).task.task_id
        for _ in range(3)
    ]
    listed = await api.list_tasks(limit=3)
    assert [task.task_id for task in listed] == ids[::-1]
    assert all(task.result is not None and task.result.output == b"" for task in listed)
    assert len(await api.list_tasks(limit=1)) == 1
    assert await api.list_tasks(limit=0) == []


@pytest.mark.parametrize(
    ("kind", "entry", "payload"),
    [("agent", ":nap", b"600"), ("command", "", b""), ("wasm", "", b"")],
)
async def test_cancelling_waits_until_nothing_of_it_runs(
    api: NodeApi, kind: str, entry: str, payload: bytes
) -> None:
    endless = {"command": "#!/bin/sh\nsleep 600\n", "wasm": LOOP_WASM, "agent": ""}
    name = (await api.deploy(upload(kind, content=endless[kind]))).name
    task_id = await start(api, f"{name}{entry}", payload)
    await running(api, task_id)
    (instance,) = await instances_of(api, name)
    assert instance.state is InstanceState.RUNNING
    ended = await api.cancel_task(task_id, reason="nobody wants it")
    assert ended.state is TaskState.CANCELLED
    assert ended.result is not None
    assert ended.result.error is not None
    assert ended.result.error.code == "cancelled"
    assert "nobody wants it" in ended.result.error.message
    assert [i for i in await instances_of(api, name) if i.state is InstanceState.RUNNING] == []
    assert await api.cancel_task(task_id, reason="again") == ended


async def test_a_final_task_stays_as_it_is(api: NodeApi) -> None:
    name = await deployed(api, "wasm")
    done = (await api.invoke(InvokeRequest(function=name, payload=b"x"))).task
    assert await api.cancel_task(done.task_id) == done


# Logs ---------------------------------------------------------------------------------------------


async def test_a_log_comes_in_parts_of_a_thousand_and_each_entry_once(api: NodeApi) -> None:
    name = await deployed(api, "agent")
    task_id = await start(api, f"{name}:chatter", b"2500")
    await api.get_task(task_id, wait=True)
    entries: list[LogEntry] = []
    cursor, finished = 0, False
    while not finished:
        chunk = await api.read_log(task_id, cursor=cursor)
        assert len(chunk.entries) <= 1000
        entries += chunk.entries
        cursor, finished = chunk.cursor, chunk.finished
    assert [e.message for e in entries] == [str(n) for n in range(2500)]
    assert [e.seq for e in entries] == list(range(1, 2501))
    assert {e.level for e in entries} == {"info"}
    with pytest.raises(InvalidRequestError):
        await api.read_log(task_id, cursor=-1)


async def test_a_follower_hears_of_the_first_entry_and_of_the_end(api: NodeApi) -> None:
    name = await deployed(api, "agent")
    task_id = await start(api, f"{name}:wait", b"it")
    with trio.fail_after(60):
        first = await api.read_log(task_id, wait=True)
        assert [e.message for e in first.entries] == ["waiting for it"]
        assert not first.finished
        assert not (await api.read_log(task_id, cursor=first.cursor)).finished
        await api.objects.put(f"{name}/go", b"")
        rest = await api.read_log(task_id, cursor=first.cursor, wait=True)
        while not rest.finished:
            rest = await api.read_log(task_id, cursor=rest.cursor, wait=True)
    assert (await api.get_task(task_id)).state is TaskState.COMPLETED


# Artifacts ----------------------------------------------------------------------------------------


async def test_the_same_again_is_the_same_version_and_anything_else_the_next(api: NodeApi) -> None:
    first = upload("agent")
    info = await api.deploy(first)
    assert (info.version, info.size, info.in_use) == (1, len(first.content), 0)
    assert await api.deploy(first) == info
    for number, changed in enumerate(
        (
            attrs.evolve(first, env={"A": "1"}),
            attrs.evolve(first, timeout_s=1.0),
            attrs.evolve(first, content=first.content + b"\n"),
            first,  # equal to version 1, but that is not the latest any more
        ),
        start=2,
    ):
        assert (await api.deploy(changed)).version == number
    mine = [a for a in await api.list_artifacts() if a.name == first.name]
    assert [a.version for a in mine] == [5, 4, 3, 2, 1]
    names = [a.name for a in await api.list_artifacts()]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"filename": "data.bin", "content": b"\0\1\2"}, UnsupportedArtifactError),
        ({"filename": "bad.wat", "content": b"(module (func"}, UnsupportedArtifactError),
        ({"filename": "bad.wasm", "content": b"\0asm\1\0\0\0garbage"}, UnsupportedArtifactError),
        ({"runtime": "absent"}, RuntimeNotFoundError),
        ({"runtime": "wasm", "filename": "x.sh"}, UnsupportedArtifactError),
        ({"name": "../x"}, InvalidRequestError),
        ({"filename": "a/b.wat"}, InvalidRequestError),
        ({"timeout_s": -1.0}, InvalidRequestError),
    ],
)
async def test_what_deploy_refuses_is_not_kept(
    api: NodeApi, change: dict[str, Any], error: type[SpearError]
) -> None:
    before = await api.list_artifacts()
    with pytest.raises(error):
        await api.deploy(attrs.evolve(upload("wasm"), **change))
    assert await api.list_artifacts() == before


async def test_isolation_that_cannot_be_had_is_refused(api: NodeApi) -> None:
    strict = attrs.evolve(upload("command"), required_isolation=max(IsolationLevel))
    try:
        await api.deploy(strict)
    except IsolationUnavailableError:
        with pytest.raises(ArtifactNotFoundError):
            await api.invoke(InvokeRequest(function=strict.name))
    else:  # a machine that reaches every level has to show it
        response = await api.invoke(InvokeRequest(function=strict.name))
        assert response.task.result is not None
        assert response.task.result.usage.isolation is max(IsolationLevel)


async def test_delete_counts_keeps_what_is_in_use_and_gives_no_number_twice(api: NodeApi) -> None:
    first = upload("agent")
    await api.deploy(first)
    await api.deploy(attrs.evolve(first, env={"A": "1"}))
    task_id = await start(api, f"{first.name}@2:nap", b"600")
    await running(api, task_id)
    with pytest.raises(ArtifactInUseError):
        await api.delete_artifact(first.name)
    mine = [a for a in await api.list_artifacts() if a.name == first.name]
    assert [(a.version, a.in_use > 0) for a in mine] == [(2, True), (1, False)]
    assert await api.delete_artifact(first.name, version=1) == 1
    await api.cancel_task(task_id)
    await api.invoke(InvokeRequest(function=f"{first.name}:echo"))
    assert await instances_of(api, first.name)
    assert await api.delete_artifact(first.name) == 1  # an idle instance keeps nobody from it
    assert await instances_of(api, first.name) == []
    for version in (None, 1, 2):
        with pytest.raises(ArtifactNotFoundError):
            await api.delete_artifact(first.name, version=version)
    assert (await api.deploy(first)).version == 3


# The node itself ----------------------------------------------------------------------------------


async def test_instances_and_counts_are_what_ran(api: NodeApi, node: Process) -> None:
    before = await api.status()
    assert before.pid == node.process.pid
    assert before.state_dir == str(node.state)
    name = await deployed(api, "agent")
    for payload in (b"1", b"2"):
        await api.invoke(InvokeRequest(function=name, payload=payload))
    await api.invoke(InvokeRequest(function=f"{name}:fail", payload=b"x"))
    (instance,) = await instances_of(api, name)
    assert (instance.artifact, instance.state) == (f"{name}@1", InstanceState.READY)
    assert (instance.executions, instance.runtime) == (3, "process")
    assert instance.pid is not None
    status = await api.status()
    assert status.total_executions - before.total_executions == 3
    assert status.successful_executions - before.successful_executions == 2
    assert status.failed_executions - before.failed_executions == 1
    assert (status.running, status.queued) == (0, 0)
    assert {r.name for r in status.runtimes} >= {"process"}
    loaded = {p.name: p for p in await api.list_plugins()}
    assert loaded["runtime-process"].health == "healthy"
    assert "runtime:wasm" in loaded["runtime-wasm"].provides


@asynccontextmanager
async def _node_that_is_gone(node: Process) -> AsyncIterator[NodeApi]:
    async with connect(node.url) as api:
        node.stop(signal.SIGKILL)
        yield api


async def test_every_method_says_that_the_node_is_gone(
    start_node: Callable[[], Process],
) -> None:
    node = start_node()
    async with _node_that_is_gone(node) as api:
        for ask in (
            lambda: api.invoke(InvokeRequest(function="f")),
            lambda: api.get_task("t", wait=True),
            api.list_tasks,
            lambda: api.cancel_task("t"),
            lambda: api.read_log("t"),
            lambda: api.deploy(upload("wasm")),
            api.list_artifacts,
            lambda: api.delete_artifact("f"),
            api.list_instances,
            api.list_plugins,
            api.status,
        ):
            with pytest.raises(NodeUnreachableError):
                await ask()
    with pytest.raises(NodeUnreachableError, match="spear node"):
        async with connect(node.url):
            pass


async def test_a_door_that_closes_lets_requests_under_way_finish_and_takes_nothing_new(
    start_node: Callable[[], Process],
) -> None:
    node = start_node("[execution]\nshutdown_grace_ms = 600_000\n")
    answers: list[Any] = []
    async with connect(node.url) as api:
        name = await deployed(api, "agent")
        task_id = await start(api, f"{name}:wait", b"one")

        async def note(ask: Awaitable[Any]) -> None:
            answers.append(await ask)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                note, api.invoke(InvokeRequest(function=f"{name}:wait", payload=b"other"))
            )
            nursery.start_soon(note, api.get_task(task_id, wait=True))
            await running(api, task_id)
            node.process.send_signal(signal.SIGTERM)
            with trio.fail_after(60):
                while True:
                    try:
                        await start(api, f"{name}:echo")
                    except NodeStoppingError:
                        break
                    await trio.sleep(0.01)
            assert (await api.get_task(task_id)).state is TaskState.RUNNING
            await api.objects.put(f"{name}/go", b"")
    outputs = {getattr(answer, "task", answer).result.output for answer in answers}
    assert outputs == {b"waited for one", b"waited for other"}
    assert await trio.to_thread.run_sync(node.process.wait, 60) == 0
    assert not (node.state / "node.sock").exists()
