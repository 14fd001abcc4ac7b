"""What a node answers its callers: a real node with a steered runtime and no front door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
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
    Fingerprint,
    InstanceState,
    InvokeRequest,
    SpearletConfig,
    TaskState,
)
from spear_core.errors import (
    ArtifactInUseError,
    ArtifactNotFoundError,
    InvalidRequestError,
    NodeAlreadyRunningError,
    NodeStoppingError,
    RuntimeNotFoundError,
    TaskNotFoundError,
    UnsupportedArtifactError,
)

UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code")


async def hang(request: ExecutionRequest) -> ExecutionResponse:
    await trio.sleep_forever()
    raise AssertionError


async def test_deploy_and_invoke(open_steered_node: Any, runtime: Any) -> None:
    async with open_steered_node() as node:
        info = await node.api.deploy(UPLOAD)
        assert (info.name, info.version, info.runtime, info.shape) == ("f", 1, "steered", "s")
        assert await node.api.deploy(UPLOAD) == info
        response = await node.api.invoke(InvokeRequest(function="f", payload=b"hello"))
        assert response.success
        assert response.task.state is TaskState.COMPLETED
        assert response.task.result.output == b"hello"
        assert (response.status_endpoint, response.estimated_completion_ms) == ("", 0)
        (listed,) = await node.api.list_artifacts()
        assert listed.in_use == 1
        (instance,) = await node.api.list_instances()
        assert (instance.artifact, instance.state) == ("f@1", InstanceState.READY)
        status = await node.api.status()
        assert (status.total_executions, status.running, status.instances) == (1, 0, 1)


async def test_async_answers_at_once_and_the_result_is_found_by_either_id(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def work(request: ExecutionRequest) -> ExecutionResponse:
        await trio.sleep(10)
        return ExecutionResponse.completed(b"done")

    runtime.behaviour = work
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        started = trio.current_time()
        response = await node.api.invoke(
            InvokeRequest(function="f", mode=ExecutionMode.ASYNC, timeout_s=30)
        )
        assert trio.current_time() == started
        assert response.success
        assert response.task.result is None
        assert response.status_endpoint == f"/status/{response.task.execution_id}"
        assert response.estimated_completion_ms == 30_000
        task = await node.api.get_task(response.task.execution_id, wait=True)
        assert task.result.output == b"done"
        assert task == await node.api.get_task(response.task.task_id)
        (listed,) = await node.api.list_tasks()
        assert listed.result.output == b""
        for function, known in (("f", True), ("f:other", False)):
            response = await node.api.invoke(
                InvokeRequest(function=function, mode=ExecutionMode.ASYNC, timeout_s=30)
            )
            assert (response.estimated_completion_ms < 30_000) is known
            await node.api.cancel_task(response.task.task_id)


async def test_logs_are_read_while_it_runs_and_after_a_restart(
    open_steered_node: Any, runtime: Any
) -> None:
    async def talk(request: ExecutionRequest) -> ExecutionResponse:
        runtime.context.hostcalls.log(request.execution_id, "one", level="warn")
        runtime.context.hostcalls.log(request.execution_id, "two", level="shout", source="stdout")
        runtime.context.hostcalls.log("e-unknown", "lost")
        return ExecutionResponse.completed(b"")

    runtime.behaviour = talk
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        task = (await node.api.invoke(InvokeRequest(function="f"))).task
        chunk = await node.api.read_log(task.task_id, wait=True)
        assert [(e.message, e.level, e.source) for e in chunk.entries] == [
            ("one", "warn", "guest"),
            ("two", "info", "stdout"),
        ]
        assert chunk.finished
        with pytest.raises(InvalidRequestError, match="cursor"):
            await node.api.read_log(task.task_id, cursor=-1)
        with pytest.raises(TaskNotFoundError, match="t-none"):
            await node.api.read_log("t-none")
    async with open_steered_node() as node:
        assert (await node.api.read_log(task.task_id)).entries == chunk.entries
        with pytest.raises(TaskNotFoundError, match="restarted"):
            await node.api.get_task(task.task_id)


async def test_cancel_waits_until_nothing_runs(open_steered_node: Any, runtime: Any) -> None:
    runtime.behaviour = hang
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        response = await node.api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ArtifactInUseError):
            await node.api.delete_artifact("f")
        task = await node.api.cancel_task(response.task.task_id, reason="enough")
        assert task.state is TaskState.CANCELLED
        assert "enough" in task.result.error.message
        assert await node.api.cancel_task(task.task_id) == task
        assert await node.api.delete_artifact("f") == 1
        assert await node.api.list_artifacts() == []


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (InvokeRequest(function="g"), ArtifactNotFoundError, "spear deploy"),
        (InvokeRequest(function=":x"), InvalidRequestError, "name"),
        (InvokeRequest(function="f", timeout_s=0), InvalidRequestError, "timeout_s"),
        (InvokeRequest(function="f", timeout_s=float("nan")), InvalidRequestError, "timeout_s"),
        (InvokeRequest(function="f", payload=b"x" * 101), InvalidRequestError, "max_input_bytes"),
    ],
)
async def test_bad_requests(
    open_steered_node: Any, request_: InvokeRequest, error: type[Exception], says: str
) -> None:
    config = SpearletConfig(execution=ExecutionConfig(max_input_bytes=100))
    async with open_steered_node(config) as node:
        await node.api.deploy(UPLOAD)
        with pytest.raises(error, match=says):
            await node.api.invoke(request_)
        assert await node.api.list_tasks() == []


@pytest.mark.parametrize(
    ("upload", "error", "says"),
    [
        (
            {"filename": "f.py"},
            UnsupportedArtifactError,
            "pip install spear-runtime-process|'runtime-process' is skipped",
        ),
        ({"filename": "f.xyz"}, UnsupportedArtifactError, "no installed runtime runs"),
        (
            {"runtime": "wasm"},
            RuntimeNotFoundError,
            "pip install spear-runtime-wasm|'runtime-wasm' is skipped",
        ),
        ({"runtime": "wsam"}, RuntimeNotFoundError, r"no runtime 'wsam' \(runtimes: .*steered"),
        ({"filename": "f.py", "runtime": "steered"}, UnsupportedArtifactError, "does not run"),
    ],
)
async def test_what_nothing_can_run_is_refused_with_the_remedy(
    open_steered_node: Any, upload: dict[str, Any], error: type[Exception], says: str
) -> None:
    async with open_steered_node() as node:
        with pytest.raises(error, match=says):
            await node.api.deploy(
                ArtifactUpload(**{"name": "f", "filename": "f.st", "content": b"", **upload})
            )


async def test_code_that_its_runtime_refuses_is_not_kept(
    open_steered_node: Any, runtime: Any, tmp_path: Path
) -> None:
    runtime.prepare_error = UnsupportedArtifactError("malformed at offset 7")
    async with open_steered_node() as node:
        with pytest.raises(UnsupportedArtifactError, match="offset 7"):
            await node.api.deploy(UPLOAD)
        assert await node.api.list_artifacts() == []
        assert list((tmp_path / "state/artifacts/code").iterdir()) == []
        runtime.prepare_error = None
        assert (await node.api.deploy(UPLOAD)).version == 1


async def test_artifacts_outlive_the_node(open_steered_node: Any, runtime: Any) -> None:
    async with open_steered_node() as node:
        info = await node.api.deploy(UPLOAD)
    async with open_steered_node() as node:
        assert await node.api.list_artifacts() == [info]
        assert (await node.api.invoke(InvokeRequest(function="f", payload=b"x"))).success


async def test_stopping_drains_refuses_new_work_and_ends_every_instance(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    async def work(request: ExecutionRequest) -> ExecutionResponse:
        await trio.sleep(3)
        return ExecutionResponse.completed(b"done")

    runtime.behaviour = work
    refused = []

    async def knock(api: Any) -> None:
        await trio.sleep(1)
        with pytest.raises(NodeStoppingError):
            await api.invoke(InvokeRequest(function="f"))
        refused.append(True)

    async with trio.open_nursery() as nursery, open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        response = await node.api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))
        nursery.start_soon(knock, node.api)
    task = await node.api.get_task(response.task.task_id)
    assert task.state is TaskState.COMPLETED
    assert refused
    assert runtime.live == 0


async def test_hurrying_cuts_the_grace_period_short(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    runtime.behaviour = hang
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        response = await node.api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))
        await trio.testing.wait_all_tasks_blocked()
        node.hurry()
        started = trio.current_time()
    assert trio.current_time() - started < 1
    assert (await node.api.get_task(response.task.task_id)).state is TaskState.CANCELLED


async def test_a_cancelled_node_leaves_no_instance(open_steered_node: Any, runtime: Any) -> None:
    with trio.CancelScope() as scope:

        async def cancel_all(request: ExecutionRequest) -> ExecutionResponse:
            scope.cancel()
            return await hang(request)

        runtime.behaviour = cancel_all
        async with open_steered_node() as node:
            await node.api.deploy(UPLOAD)
            await node.api.invoke(InvokeRequest(function="f"))
    assert len(runtime.opened) == 1
    assert runtime.live == 0


async def test_a_second_node_on_the_directory_is_refused(open_steered_node: Any) -> None:
    async with open_steered_node():
        with pytest.raises(NodeAlreadyRunningError):
            async with open_steered_node():
                pass


async def test_the_nodes_own_log_is_json_lines(open_steered_node: Any, tmp_path: Path) -> None:
    async with open_steered_node():
        pass
    lines = (tmp_path / "state/logs/system.log").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert "is ready" in entries[0]["message"]
    assert {"ts", "level", "logger", "message"} <= set(entries[0])


async def test_deleting_is_all_or_nothing_whoever_calls_meanwhile(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    refused: list[str] = []

    async with open_steered_node() as node:
        for content in (b"1", b"2"):
            await node.api.deploy(attrs.evolve(UPLOAD, content=content))
        for version in (1, 2):
            await node.api.invoke(InvokeRequest(function=f"f@{version}"))

        async def call_again_and_again() -> None:
            for _ in range(20):
                await trio.lowlevel.checkpoint()
                try:
                    await node.api.invoke(InvokeRequest(function="f@2"))
                except ArtifactNotFoundError as error:
                    refused.append(error.message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_again_and_again)
            await trio.lowlevel.checkpoint()
            while await node.api.list_artifacts():
                try:
                    assert await node.api.delete_artifact("f") == 2
                except ArtifactInUseError:
                    assert len(await node.api.list_artifacts()) == 2
                    await trio.lowlevel.checkpoint()
        assert refused
        await trio.testing.wait_all_tasks_blocked()
        assert await node.api.list_instances() == []
    assert runtime.live == 0


async def test_a_delete_that_is_given_up_leaves_the_artifact_usable(
    open_steered_node: Any, runtime: Any, autojump_clock: trio.testing.MockClock
) -> None:
    open_quick = runtime.open_instance

    @asynccontextmanager
    async def open_slow_to_end(spec: Any) -> AsyncIterator[Any]:
        async with open_quick(spec) as instance:
            try:
                yield instance
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(5)

    runtime.open_instance = open_slow_to_end
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        await node.api.invoke(InvokeRequest(function="f"))
        with trio.move_on_after(1) as given_up:
            await node.api.delete_artifact("f")
        assert given_up.cancelled_caught
        assert (await node.api.invoke(InvokeRequest(function="f"))).success


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout_s": 1e300},
        {"timeout_s": float("nan")},
        {"function": "f@" + "9" * 900},
        {"function": "f:" + "e" * 60_000},
        {"content_type": "t" * 60_000},
        {"trace": "t" * 60_000},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_what_no_message_could_carry_is_refused_and_hurts_no_instance(
    open_steered_node: Any, wrong: dict[str, Any]
) -> None:
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        with pytest.raises(InvalidRequestError):
            await node.api.invoke(
                attrs.evolve(InvokeRequest(function="f", mode=ExecutionMode.ASYNC), **wrong)
            )
        assert await node.api.list_tasks() == []


async def test_a_deadline_that_cannot_be_is_refused_when_it_is_deployed(
    open_steered_node: Any,
) -> None:
    async with open_steered_node() as node:
        for timeout_s in (-1.0, 0.0, float("inf")):
            with pytest.raises(InvalidRequestError):
                await node.api.deploy(attrs.evolve(UPLOAD, timeout_s=timeout_s))


async def test_a_runtime_that_cannot_even_look_is_unhealthy_and_hides_nothing_else(
    open_steered_node: Any, runtime: Any
) -> None:
    async def break_down() -> Fingerprint:
        raise OSError("no such device")

    runtime.fingerprint = break_down
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        (info,) = (await node.api.status()).runtimes
        assert info.health == "unhealthy"
        assert "no such device" in info.message
        assert await node.api.list_plugins()


async def test_status_names_a_runtime_that_nobody_has_needed_yet(open_steered_node: Any) -> None:
    async with open_steered_node() as node:
        (info,) = (await node.api.status()).runtimes
        assert (info.name, info.health, info.message) == ("steered", "", "not opened yet")
        await node.api.deploy(UPLOAD)
        (info,) = (await node.api.status()).runtimes
        assert info.health == "healthy"


async def test_an_artifact_whose_runtime_is_gone_is_refused_with_the_remedy(
    open_steered_node: Any, tmp_path: Path
) -> None:
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
    record = tmp_path / "state" / "artifacts" / "names" / "f.json"
    record.write_text(record.read_text().replace('"steered"', '"wasm"'))
    async with open_steered_node() as node:
        with pytest.raises(RuntimeNotFoundError, match="pip install spear-runtime-wasm"):
            await node.api.invoke(InvokeRequest(function="f"))


async def test_the_status_counts_what_ended_well_and_what_did_not(
    open_steered_node: Any, runtime: Any
) -> None:
    async def work(request: ExecutionRequest) -> ExecutionResponse:
        if request.payload:
            raise InvalidRequestError("no")
        return ExecutionResponse.completed(b"")

    runtime.behaviour = work
    async with open_steered_node() as node:
        for name in ("f", "g"):
            await node.api.deploy(attrs.evolve(UPLOAD, name=name, content=name.encode()))
            for payload in (b"", b"", b"bad"):
                await node.api.invoke(InvokeRequest(function=name, payload=payload))
        status = await node.api.status()
        total = (await node.api.metrics()).total
    assert (status.total_executions, status.successful_executions) == (6, 4)
    assert status.failed_executions == 2
    assert status.average_execution_time_ms == pytest.approx(total.average_execution_time_ms)


async def test_every_question_and_every_submission_lets_others_run(
    open_steered_node: Any, runtime: Any
) -> None:
    """A caller in the node's own process who asks or submits in a loop holds up nobody."""
    submit = InvokeRequest(function="f", mode=ExecutionMode.ASYNC)
    async with open_steered_node() as node:
        api = node.api
        await api.deploy(UPLOAD)
        task_id = (await api.invoke(submit)).task.task_id
        await api.get_task(task_id, wait=True)
        with_key = attrs.evolve(submit, idempotency_key="k")
        for ask in (
            lambda: api.invoke(submit),
            lambda: api.invoke(with_key),
            lambda: api.invoke(with_key),  # the second finds the first one's task
            lambda: api.get_task(task_id),
            lambda: api.get_task(task_id, wait=True),
            api.list_tasks,
            lambda: api.cancel_task(task_id),
            lambda: api.read_log(task_id),
            api.list_artifacts,
            lambda: api.get_artifact("f"),
            api.list_instances,
            api.list_plugins,
            api.status,
            api.metrics,
        ):
            with trio.testing.assert_checkpoints():
                await ask()


async def test_a_full_queue_and_a_flood_of_submissions_let_a_call_through(
    open_steered_node: Any, runtime: Any, mock_clock: trio.testing.MockClock
) -> None:
    """Told by counting instead of by the clock: everything takes 16 passes of the loop, so a call
    should take about 32 of them, one execution to wait for and its own. The clock stands still:
    how long an execution took decides whose turn it is, and on a busy machine that is chance."""
    submitted = 0
    noise = InvokeRequest(function="noisy", mode=ExecutionMode.ASYNC)

    async def work(request: ExecutionRequest) -> ExecutionResponse:
        for _ in range(16):
            await trio.lowlevel.checkpoint()
        return ExecutionResponse.completed(b"")

    async def flood(api: Any) -> None:
        nonlocal submitted
        while True:
            await api.invoke(noise)
            submitted += 1

    runtime.behaviour = work
    limits = ExecutionConfig(
        max_concurrent_tasks=8, max_queued_tasks=10_000, max_queued_per_artifact=10_000
    )
    async with open_steered_node(SpearletConfig(execution=limits)) as node:
        for name in ("noisy", "quiet"):
            await node.api.deploy(attrs.evolve(UPLOAD, name=name, content=name.encode()))
            await node.api.invoke(InvokeRequest(function=name))
        for _ in range(500):
            await node.api.invoke(noise)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, node.api)
            for _ in range(10):
                assert (await node.api.status()).queued > 100
                before = submitted
                await node.api.invoke(InvokeRequest(function="quiet"))
                assert 10 < submitted - before < 64
            nursery.cancel_scope.cancel()
