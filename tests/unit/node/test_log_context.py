"""The node's own log says which task a line is about."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import trio

from spear_core.api import (
    ArtifactUpload,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InvokeRequest,
)
from spear_core.node._background import open_background
from spear_core.node._log_context import task_ids, working_on

UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code")
TRACE = "ab" * 16


def lines(tmp_path: Path, message: str) -> list[dict[str, Any]]:
    (path,) = (tmp_path / "state").rglob("system.log")
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry for entry in entries if entry["message"] == message]


async def test_a_line_written_in_an_execution_has_its_ids_and_one_outside_has_none(
    open_steered_node: Any, runtime: Any, tmp_path: Path
) -> None:
    log = logging.getLogger("spear.some-plugin")

    async def tell(request: ExecutionRequest) -> ExecutionResponse:
        log.warning("inside")
        return ExecutionResponse.completed(b"")

    runtime.behaviour = tell
    async with open_steered_node() as node:
        await node.api.deploy(UPLOAD)
        request = InvokeRequest(function="f", trace=f"00-{TRACE}-{'cd' * 8}-01")
        task = (await node.api.invoke(request)).task
        log.warning("outside")
        later = await node.api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))
        await node.api.get_task(later.task.task_id, wait=True)
    first, second = lines(tmp_path, "inside")
    assert (first["task_id"], first["execution_id"]) == (task.task_id, task.execution_id)
    assert (first["trace_id"], first["logger"]) == (TRACE, "spear.some-plugin")
    assert second["task_id"] == later.task.task_id
    assert "trace_id" not in second
    (outside,) = lines(tmp_path, "outside")
    assert "task_id" not in outside


async def test_a_service_started_for_a_task_does_not_speak_for_it_later() -> None:
    seen: list[object] = []
    done = trio.Event()

    async def serve() -> None:
        seen.append(task_ids())
        done.set()

    class SomeTask:
        id, execution_id, trace = "t-1", "e-1", ""

    async with open_background() as background:
        token = working_on.set(SomeTask())  # type: ignore[arg-type]
        background.start_soon(serve)
        await done.wait()
        assert task_ids() == {"task_id": "t-1", "execution_id": "e-1"}
        working_on.reset(token)
    assert seen == [{}]
