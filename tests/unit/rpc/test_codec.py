"""Heads and what the two ends say in them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from spear_core import errors
from spear_core.api import (
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    ExecutionUsage,
    InvokeRequest,
    Message,
    MessageFlag,
    MessageKind,
)
from spear_core.errors import (
    ChannelCreationError,
    ConfigError,
    InvalidRequestError,
    NodeAlreadyRunningError,
    ObjectConflictError,
    ProtocolError,
    ResourceExhaustedError,
    SpearError,
    TaskFailedError,
)
from spear_core.rpc.codec import (
    decode_head,
    encode_head,
    encode_small_head,
    error_from_head,
    error_to_head,
    execution_request_from_message,
    execution_request_to_message,
    execution_response_from_message,
    execution_response_to_message,
)

REQUEST = ExecutionRequest(
    execution_id="e1",
    task_id="t1",
    attempt=2,
    entry="main",
    payload=b"\x00input",
    content_type="text/plain",
    deadline_s=1.5,
    trace="00-aa-bb-01",
)


def test_execution_request_there_and_back() -> None:
    message = execution_request_to_message(REQUEST, 7)
    assert (message.kind, message.id, message.payload) == (MessageKind.REQUEST, 7, b"\x00input")
    assert execution_request_from_message(message) == REQUEST


@pytest.mark.parametrize(
    "response",
    [
        ExecutionResponse.completed(b"out", content_type="text/plain"),
        ExecutionResponse(
            status=ExecutionResponse.completed(b"").status,
            usage=ExecutionUsage(cpu_seconds=0.25, peak_memory_bytes=4096),
        ),
        ExecutionResponse.failed(
            ErrorInfo(code="unknown", message="boom", kind="ValueError", details={"line": "3"})
        ),
    ],
)
def test_execution_response_there_and_back(response: ExecutionResponse) -> None:
    message = execution_response_to_message(response, 7)
    assert execution_response_from_message(message) == response


@pytest.mark.parametrize(
    "head",
    [
        {"status": "failed"},
        {"status": "who knows"},
        {"status": "completed", "error": {"message": "and yet"}},
        {"status": 3},
        {},
        {"status": "failed", "error": {"details": {"a": 1}}},
    ],
)
def test_a_contradictory_response_is_refused(head: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        execution_response_from_message(Message(MessageKind.RESPONSE, 7, 0, encode_head(head)))


def test_an_error_response_is_raised() -> None:
    head = error_to_head(ResourceExhaustedError("full", retry_after=2.5))
    message = Message(MessageKind.RESPONSE, 7, MessageFlag.ERROR, head)
    with pytest.raises(ResourceExhaustedError, match="full") as caught:
        execution_response_from_message(message)
    assert caught.value.retry_after == 2.5


@pytest.mark.parametrize(
    "head",
    [
        {"method": "health", "args": {}},
        {"method": "execute", "args": {"execution_id": 5, "task_id": "t"}},
        {"method": "execute"},
    ],
)
def test_another_request_is_no_execution(head: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        execution_request_from_message(Message(MessageKind.REQUEST, 7, 0, encode_head(head)))


def test_another_kind_is_no_execution() -> None:
    message = execution_request_to_message(REQUEST, 7)
    with pytest.raises(ProtocolError, match="expected an answer"):
        execution_response_from_message(message)
    notice = Message(MessageKind.NOTICE, 0, 0, message.head)
    with pytest.raises(ProtocolError, match="expected a request"):
        execution_request_from_message(notice)


def every_error() -> list[type[SpearError]]:
    found = [getattr(errors, name) for name in errors.__all__ if name != "error_from_code"]
    assert len(found) > 30
    return found


@pytest.mark.parametrize("cls", every_error())
def test_every_error_comes_back_as_its_class(cls: type[SpearError]) -> None:
    back = error_from_head(error_to_head(cls("what happened")))
    assert type(back) is cls
    assert (back.message, back.code, back.retryable) == ("what happened", cls.code, cls.retryable)


@pytest.mark.parametrize(
    ("error", "attribute"),
    [
        (ResourceExhaustedError("x", retry_after=0.5), "retry_after"),
        (ObjectConflictError("x", current=4), "current"),
        (ConfigError("x", problems=("a: b", "c: d")), "problems"),
        (TaskFailedError("x", kind="ValueError"), "kind"),
        (TaskFailedError("x", details={"exit_code": "3"}), "details"),
        (ChannelCreationError("x", failures=[("unix", "no"), ("tcp", "no")]), "failures"),
        (NodeAlreadyRunningError("x", pid=77), "pid"),
    ],
)
def test_what_an_error_knows_comes_with_it(error: SpearError, attribute: str) -> None:
    back = error_from_head(error_to_head(error))
    assert getattr(back, attribute) == getattr(error, attribute)


def test_overridden_code_and_answer_come_back() -> None:
    back = error_from_head(error_to_head(SpearError("x", code="unimplemented", retryable=True)))
    assert (back.code, back.retryable) == ("unimplemented", True)


def test_foreign_and_unknown_errors_are_plain() -> None:
    back = error_from_head(error_to_head(ValueError("odd")))
    assert (type(back), back.message, back.code) == (SpearError, "ValueError: odd", "internal")
    head = encode_head({"name": "ErrorOfTheFuture", "message": "m", "code": "aborted"})
    future = error_from_head(head)
    assert (type(future), future.code) == (SpearError, "aborted")


def test_an_error_always_fits_into_a_head() -> None:
    for error in (
        SpearError("long " * 100_000),
        ConfigError("many", problems=["p" * 100] * 5000),
        ValueError("\N{GRINNING FACE}" * 100_000),
    ):
        assert len(error_to_head(error)) <= 65535


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\x81\xa1a\x01\x02",
        b"\x93\x01\x02\x03",
        b"\xa2\xff\xff",
        b"\x81\xa2\xff\xff\x01",
        b"\x81\xa1a" + b"\x91" * 60_000,
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
    ],
)
def test_bytes_that_are_no_map_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed head"):
        decode_head(data, dict)
    with pytest.raises(ProtocolError, match="malformed head"):
        error_from_head(data)


def test_heads_hold_attrs_values_and_ignore_what_is_new() -> None:
    request = InvokeRequest(function="f", timeout_s=1.0)
    assert decode_head(encode_head(request), InvokeRequest) == request
    newer = {**msgspec.to_builtins(request, builtin_types=(bytes,)), "colour": "green"}
    assert decode_head(encode_head(newer), InvokeRequest) == request
    with pytest.raises(ProtocolError, match="timeout_s"):
        decode_head(encode_head({"function": "f", "timeout_s": "soon"}), InvokeRequest)


@pytest.mark.parametrize("number", [1 << 64, -(1 << 63) - 1])
def test_a_number_that_does_not_fit_is_refused(number: int) -> None:
    with pytest.raises(InvalidRequestError, match="64 bits"):
        encode_head({"version": number})


def test_a_head_that_no_frame_holds_is_refused() -> None:
    assert len(encode_small_head({"a": "x" * 65000})) > 65000
    with pytest.raises(InvalidRequestError, match="65535"):
        encode_small_head({"a": "x" * 65536})
