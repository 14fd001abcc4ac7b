"""Every method of NodeApi through the local socket, there and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import pytest

from spear_core.api import (
    ArtifactDetails,
    ArtifactInfo,
    ArtifactMetrics,
    ArtifactSettings,
    ArtifactState,
    ArtifactUpload,
    ConfigReload,
    ErrorInfo,
    ExecutionMetrics,
    ExecutionMode,
    ExecutionUsage,
    Histogram,
    InstanceInfo,
    InstanceState,
    InvokeRequest,
    InvokeResponse,
    IsolationLevel,
    Limits,
    LogChunk,
    LogEntry,
    NodeMetrics,
    NodeStatus,
    ObjectGrants,
    PluginInfo,
    PoolSettings,
    Resources,
    RetryPolicy,
    RuntimeInfo,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.builtins.local_socket import connect
from spear_core.errors import (
    ArtifactNotFoundError,
    ConfigError,
    InvalidRequestError,
    NodeStoppingError,
    ResourceExhaustedError,
    SpearError,
    TaskNotFoundError,
)

OpenDoor = Callable[..., AbstractAsyncContextManager[str]]
Scripted = Callable[..., Any]

RESULT = TaskResult(
    output=b"\x00out",
    content_type="text/plain",
    execution_time_ms=1.25,
    instance_id="wasm/1",
    node_id="n1",
    attempt=2,
    usage=ExecutionUsage(cpu_seconds=0.5, isolation=IsolationLevel.SYSCALLS),
    object_key=".spear/results/t1",
    object_size=7,
)
TASK = TaskInfo(
    task_id="t1",
    execution_id="e1",
    function="f@1:main",
    state=TaskState.COMPLETED,
    created_at=1.0,
    started_at=2.0,
    completed_at=3.0,
    result=RESULT,
)
PENDING = attrs.evolve(TASK, state=TaskState.PENDING, started_at=None, result=None)
ARTIFACT = ArtifactInfo(
    name="f",
    version=3,
    digest="ab" * 32,
    size=10,
    runtime="wasm",
    shape="wasm",
    filename="f.wasm",
    entry="",
    created_at=1.5,
    in_use=0,
)
DISABLED = attrs.evolve(ARTIFACT, state=ArtifactState.DISABLED, latest=False, message="x")
SETTINGS: dict[str, Any] = {
    "env": {"A": "b"},
    "secrets": {"KEY": "openai"},
    "args": ("-x",),
    "limits": Limits(memory_bytes=1 << 20),
    "resources": Resources(cpu=0.5, memory_bytes=7),
    "required_isolation": IsolationLevel.LIMITS,
    "timeout_s": 2.0,
    "idempotent": True,
    "retry": RetryPolicy(attempts=4, jitter=0.0),
    "max_concurrent": 3,
    "concurrency": 2,
    "weight": 0.5,
    "pool": PoolSettings(min_instances=1, selection="round_robin"),
    "requirements": ("six>=1",),
    "dependencies": ("g", "h@2"),
    "objects": ObjectGrants(read=("g/frames/",), write=("shared/", "")),
}
DETAILS = ArtifactDetails(
    info=ARTIFACT,
    settings=ArtifactSettings(entry="e", **SETTINGS),
    bundle=True,
    reuse=False,
    dependents=("k@1",),
)
UPLOAD = ArtifactUpload(
    name="f",
    filename="f.wasm",
    content=b"\x00asm" * 10,
    bundle=True,
    reuse=False,
    executable=True,
    **SETTINGS,
)
STATUS = NodeStatus(
    node_id="n1",
    version="0.1.0",
    pid=7,
    started_at=1.0,
    state_dir="/s",
    running=1,
    queued=2,
    instances=3,
    total_executions=4,
    successful_executions=3,
    failed_executions=1,
    average_execution_time_ms=0.5,
    runtimes=(RuntimeInfo(name="wasm", health="healthy", message="", details={"v": "1"}),),
)
TIMES = Histogram(bounds_s=(0.1, 1.0), counts=(3, 2, 1), sum_s=4.5)
EXECUTIONS = ExecutionMetrics(
    total_executions=6, cold_starts=1, cpu_seconds=0.25, execution_time=TIMES, queue_time=TIMES
)
METRICS = NodeMetrics(
    node_id="n1",
    total=EXECUTIONS,
    artifacts=(ArtifactMetrics(artifact="f@1", metrics=EXECUTIONS, memory_bytes=7),) * 1000,
    rejected=2,
    errors=(("unavailable", 3),),
)
ENTRY = LogEntry(
    seq=1,
    ts=1.0,
    level="info",
    source="guest",
    message="hi",
    execution_id="e1",
    trace_id="ab" * 16,
)
INSTANCE = InstanceInfo(
    instance_id="i1",
    runtime="process",
    artifact="f@1",
    state=InstanceState.READY,
    created_at=1.0,
    executions=2,
    pid=None,
    cpu_seconds=0.1,
    memory_bytes=None,
)
PLUGIN = PluginInfo(
    name="runtime-wasm",
    distribution="spear-runtime-wasm",
    version="0.1.0",
    provides=("runtime:wasm",),
    state="loaded",
    reason="",
    health="healthy",
)

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("get_task", ("t1",), {"wait": True}, TASK),
    ("get_task", ("t1",), {"wait": False}, PENDING),
    ("list_tasks", (), {"limit": 7}, [PENDING, TASK]),
    ("list_tasks", (), {"limit": 100}, [PENDING] * 3000),
    ("cancel_task", ("t1",), {"reason": "enough"}, TASK),
    (
        "read_log",
        ("t1",),
        {"cursor": 4, "wait": True},
        LogChunk(entries=(ENTRY,) * 1000, cursor=1004, finished=True),
    ),
    ("deploy", (UPLOAD,), {}, ARTIFACT),
    ("list_artifacts", (), {}, [ARTIFACT] * 2),
    ("get_artifact", ("f@3",), {}, DETAILS),
    ("set_latest", ("f", 3), {}, ARTIFACT),
    ("set_artifact_state", ("f", 3, ArtifactState.DISABLED), {}, DISABLED),
    ("delete_artifact", ("f",), {"version": None}, 3),
    ("delete_artifact", ("f",), {"version": 2}, 1),
    ("list_instances", (), {}, [INSTANCE]),
    ("list_plugins", (), {}, [PLUGIN]),
    ("status", (), {}, STATUS),
    ("metrics", (), {}, METRICS),
    ("reload_config", (), {}, ConfigReload(path="/n.toml", changed=("a.b: 1 → 2",))),
    ("reload_config", (), {}, ConfigReload(path="", restart=("a.b", "plugins.x.c"))),
]


@pytest.mark.parametrize(("method", "args", "options", "answer"), CALLS)
async def test_a_call_and_its_answer_arrive_unchanged(
    open_door: OpenDoor,
    scripted: Scripted,
    method: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    answer: Any,
) -> None:
    node = scripted(**{method: answer})
    async with open_door(node) as url, connect(url) as client:
        assert await getattr(client, method)(*args, **options) == answer
    assert node.calls == [(method, (args, options))]


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 300_000, 16 << 20])
async def test_invoke_with_inputs_and_outputs_of_any_size(
    open_door: OpenDoor, scripted: Scripted, size: int
) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    request = InvokeRequest(
        function="f@1:main",
        payload=payload[:size],
        content_type="text/plain",
        timeout_s=1.5,
        trace="00-a-b-01",
    )

    async def echo(got: InvokeRequest) -> InvokeResponse:
        assert got == attrs.evolve(request, caller=f"uid:{os.getuid()}")
        result = attrs.evolve(RESULT, output=got.payload)
        return InvokeResponse(success=True, message="ok", task=attrs.evolve(TASK, result=result))

    async with open_door(scripted(invoke=echo)) as url, connect(url) as client:
        response = await client.invoke(request)
    assert response.task.result is not None
    assert response.task.result.output == request.payload
    assert response.task == attrs.evolve(TASK, result=attrs.evolve(RESULT, output=request.payload))


async def test_invoke_async_has_no_result_yet(open_door: OpenDoor, scripted: Scripted) -> None:
    accepted = InvokeResponse(
        success=True,
        message="accepted",
        task=PENDING,
        status_endpoint="/status/e1",
        estimated_completion_ms=70,
    )
    node = scripted(invoke=accepted)
    request = InvokeRequest(function="f", mode=ExecutionMode.ASYNC)
    async with open_door(node) as url, connect(url) as client:
        assert await client.invoke(request) == accepted
    received = attrs.evolve(request, caller=f"uid:{os.getuid()}")
    assert node.calls == [("invoke", ((received,), {}))]


async def test_a_client_may_name_another_caller(open_door: OpenDoor, scripted: Scripted) -> None:
    node = scripted(invoke=InvokeResponse(success=True, message="", task=TASK))
    request = InvokeRequest(function="f", caller="tenant-7")
    async with open_door(node) as url, connect(url) as client:
        await client.invoke(request)
    assert node.calls == [("invoke", ((request,), {}))]


async def test_a_failure_with_a_long_story_arrives(open_door: OpenDoor, scripted: Scripted) -> None:
    error = ErrorInfo(
        code="unknown", message="boom " * 30_000, kind="E", details={"stderr": "s" * 100_000}
    )
    result = attrs.evolve(RESULT, output=b"", error=error)
    task = attrs.evolve(TASK, state=TaskState.FAILED, result=result)
    failed = InvokeResponse(success=False, message="failed", task=task)
    async with open_door(scripted(invoke=failed)) as url, connect(url) as client:
        got = (await client.invoke(InvokeRequest(function="f"))).task.result
    assert got is not None
    assert got.error is not None
    assert got.error.message.startswith("boom boom")
    assert len(got.error.details["stderr"]) > 1000


@pytest.mark.parametrize(
    ("message", "details"),
    [
        ("x" * 70_000, {}),
        ("\N{GRINNING FACE}" * 16_384, {}),
        ("short", {f"key {n}": "\N{GRINNING FACE}" * 5_000 for n in range(10)}),
    ],
)
async def test_a_failure_in_letters_of_four_bytes_arrives(
    open_door: OpenDoor, scripted: Scripted, message: str, details: dict[str, str]
) -> None:
    error = ErrorInfo(code="unknown", message=message, kind="E", details=details)
    result = attrs.evolve(RESULT, output=b"", error=error)
    task = attrs.evolve(TASK, state=TaskState.FAILED, result=result)
    failed = InvokeResponse(success=False, message=message, task=task)
    async with open_door(scripted(invoke=failed)) as url, connect(url) as client:
        got = await client.invoke(InvokeRequest(function="f"))
    assert got.message == message[: len(got.message)] != ""
    assert got.task.result is not None
    assert got.task.result.error is not None
    assert got.task.result.error.message == message[: len(got.task.result.error.message)] != ""
    for key, text in got.task.result.error.details.items():
        assert details[key].endswith(text)
        assert text


async def test_an_error_in_letters_of_four_bytes_does_not_end_the_session(
    open_door: OpenDoor, scripted: Scripted
) -> None:
    node = scripted(invoke=InvalidRequestError("\N{GRINNING FACE}" * 20_000), list_plugins=[])
    async with open_door(node) as url, connect(url) as client:
        with pytest.raises(InvalidRequestError, match="\N{GRINNING FACE}" * 4_000):
            await client.invoke(InvokeRequest(function="f"))
        assert await client.list_plugins() == []


async def test_what_is_no_unicode_is_refused_clearly(
    open_door: OpenDoor, scripted: Scripted
) -> None:
    upload = ArtifactUpload(name="f", filename="f.sh", content=b"", env={"A": "\udcff"})
    async with open_door(scripted()) as url, connect(url) as client:
        with pytest.raises(InvalidRequestError, match="not valid Unicode"):
            await client.invoke(InvokeRequest(function="f\udcff"))
        with pytest.raises(InvalidRequestError, match="not valid Unicode"):
            await client.deploy(upload)


@pytest.mark.parametrize(
    ("error", "attribute", "value"),
    [
        (ArtifactNotFoundError("no artifact f"), "code", "not_found"),
        (TaskNotFoundError("no task t1"), "code", "not_found"),
        (ResourceExhaustedError("full", retry_after=2.5), "retry_after", 2.5),
        (ConfigError("bad", problems=("a.b: wrong",)), "problems", ("a.b: wrong",)),
        (NodeStoppingError("closing"), "retryable", True),
    ],
)
async def test_errors_arrive_as_their_class(
    open_door: OpenDoor, scripted: Scripted, error: SpearError, attribute: str, value: object
) -> None:
    async with open_door(scripted(status=error)) as url, connect(url) as client:
        with pytest.raises(type(error), match=error.message) as caught:
            await client.status()
    assert type(caught.value) is type(error)
    assert getattr(caught.value, attribute) == value


async def test_a_bug_in_the_node_is_an_internal_error(
    open_door: OpenDoor, scripted: Scripted
) -> None:
    node = scripted(status=KeyError("oops"), list_plugins=[])
    async with open_door(node) as url, connect(url) as client:
        with pytest.raises(SpearError, match="KeyError") as caught:
            await client.status()
        assert caught.value.code == "internal"
        assert await client.list_plugins() == []


async def test_settings_that_are_too_large_are_refused_clearly(
    open_door: OpenDoor, scripted: Scripted
) -> None:
    upload = attrs.evolve(UPLOAD, env={"LONG": "x" * 100_000})
    node = scripted(deploy=ARTIFACT)
    async with open_door(node) as url, connect(url) as client:
        with pytest.raises(InvalidRequestError, match="settings of 'f'"):
            await client.deploy(upload)
    assert node.calls == []


@pytest.mark.parametrize(("bundle", "packed"), [(True, " when packed"), (False, "")])
async def test_code_that_is_too_large_for_a_message_is_refused_before_it_is_sent(
    open_door: OpenDoor, scripted: Scripted, bundle: bool, packed: str
) -> None:
    upload = attrs.evolve(UPLOAD, content=bytes((64 << 20) + 1), bundle=bundle)
    node = scripted(deploy=ARTIFACT)
    async with open_door(node) as url, connect(url) as api:
        with pytest.raises(InvalidRequestError, match=rf"67108865 bytes{packed}; .*exclude"):
            await api.deploy(upload)
        assert node.calls == []
        await api.deploy(attrs.evolve(upload, content=bytes(64 << 20)))
