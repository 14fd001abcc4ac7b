"""Values survive the way through the protos, and the protos have room for all of them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from spear_core.api import (
    ArtifactUpload,
    ExecutionMode,
    InvokeRequest,
    InvokeResponse,
    TaskInfo,
    TaskResult,
    TaskState,
)
from spear_core.errors import InvalidRequestError
from spear_transport_grpc._convert import MESSAGES, converter
from spear_transport_grpc._protos.spear.v1 import artifact_pb2, function_pb2
from spear_transport_grpc._task import (
    response_from_message,
    response_to_message,
    task_from_message,
    task_to_message,
)


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_field_has_a_place_in_the_proto(cls: type[Any]) -> None:
    descriptor = MESSAGES[cls].DESCRIPTOR
    assert {field.name for field in attrs.fields(cls)} <= set(descriptor.fields_by_name)


VALUES = [cls for cls in MESSAGES if cls is not TaskInfo]


@pytest.mark.parametrize("cls", VALUES, ids=lambda cls: cls.__name__)
def test_a_value_comes_back_as_it_was(cls: type[Any], full: Any) -> None:
    value = full(cls)
    data = converter(cls).encode(value).SerializeToString()
    assert converter(cls).decode(MESSAGES[cls].FromString(data)) == value


@pytest.mark.parametrize(
    "result",
    [
        TaskResult(output=b"out"),
        TaskResult(output=b""),
        TaskResult(object_key=".spear/results/t", object_size=1 << 40),
    ],
)
def test_an_output_comes_back_from_where_it_is(result: TaskResult) -> None:
    data = converter(TaskResult).encode(result).SerializeToString()
    assert converter(TaskResult).decode(MESSAGES[TaskResult].FromString(data)) == result


@pytest.mark.parametrize("cls", [InvokeRequest], ids=lambda cls: cls.__name__)
def test_what_is_not_said_is_the_default(cls: type[Any]) -> None:
    message = function_pb2.InvokeFunctionRequest(function="f")
    assert converter(cls).decode(message) == InvokeRequest(function="f")


def test_an_unknown_mode_is_refused_with_those_there_are() -> None:
    message = function_pb2.InvokeFunctionRequest(function="f", mode=9)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="EXECUTION_MODE_SYNC, EXECUTION_MODE_ASYNC"):
        converter(InvokeRequest).decode(message)


@pytest.mark.parametrize("mode", ExecutionMode)
def test_modes_have_their_numbers(mode: ExecutionMode) -> None:
    message = converter(InvokeRequest).encode(InvokeRequest(function="f", mode=mode))
    assert converter(InvokeRequest).decode(message).mode is mode


@pytest.mark.parametrize("state", TaskState)
def test_tasks_and_answers_come_back(state: TaskState, full: Any) -> None:
    result = full(TaskResult) if state.is_final else None
    task = attrs.evolve(full(TaskInfo), state=state, result=result)
    assert task_from_message(task_to_message(task)) == task
    response = InvokeResponse(
        success=True,
        message="done",
        task=task,
        status_endpoint="/status/x",
        estimated_completion_ms=7,
    )
    message = response_to_message(response)
    assert response_from_message(message) == response
    assert message.task_id == task.task_id
    assert message.result.status == list(TaskState).index(state) + 1
    assert not message.task.HasField("result")


def test_a_deployment_has_room_for_the_whole_upload() -> None:
    header = set(artifact_pb2.DeployArtifactHeader.DESCRIPTOR.fields_by_name)
    kept = set(artifact_pb2.ArtifactSettings.DESCRIPTOR.fields_by_name)
    fields = {field.name for field in attrs.fields(ArtifactUpload)}
    assert fields - {"content"} == (header - {"size", "settings"}) | kept
