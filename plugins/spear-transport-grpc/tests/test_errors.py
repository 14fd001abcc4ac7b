"""Errors cross gRPC as standard statuses with rich details, and come back as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spear_core import errors
from spear_core.errors import (
    CircuitOpenError,
    ConfigError,
    InvalidRequestError,
    NodeUnreachableError,
    ProtocolError,
    ResourceExhaustedError,
    SpearError,
)
from spear_transport_grpc._bridge import RpcError, StatusCode
from spear_transport_grpc._errors import error_to_status, status_to_error
from spear_transport_grpc._protos.google.rpc import error_details_pb2, status_pb2


def tree(cls: type[SpearError] = SpearError) -> Iterator[type[SpearError]]:
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below)


@pytest.mark.parametrize("cls", list(tree()), ids=lambda cls: cls.__name__)
def test_every_error_comes_back_as_it_was(cls: type[SpearError]) -> None:
    status = error_to_status(cls("what happened: ü"))
    assert status.code.name == cls.code.upper()
    back = status_to_error(status, "grpc://here")
    assert type(back) is cls
    assert (back.message, back.code, back.retryable) == (
        "what happened: ü",
        cls.code,
        cls.retryable,
    )


@pytest.mark.parametrize("cls", [ResourceExhaustedError, CircuitOpenError])
def test_when_to_come_again_travels_as_retry_info(cls: type[ResourceExhaustedError]) -> None:
    status = error_to_status(cls("full", retry_after=2.5))
    back = status_to_error(status, "x")
    assert isinstance(back, cls)
    assert back.retry_after == 2.5
    ((_, data),) = status.trailing
    assert isinstance(data, bytes)
    kinds = [d.type_url.rpartition(".")[2] for d in status_pb2.Status.FromString(data).details]
    assert kinds == ["ErrorInfo", "RetryInfo"]


def test_a_wrong_request_names_its_fields() -> None:
    error = ConfigError("two are wrong", problems=("pool.x: too small", "strange"))
    ((_, data),) = error_to_status(error).trailing
    assert isinstance(data, bytes)
    bad = error_details_pb2.BadRequest()
    assert status_pb2.Status.FromString(data).details[1].Unpack(bad)
    found = [(v.field, v.description) for v in bad.field_violations]
    assert found == [("pool.x", "too small"), ("", "strange")]


def test_a_code_that_grpc_does_not_know_is_unknown() -> None:
    assert error_to_status(SpearError("x", code="strange")).code is StatusCode.UNKNOWN
    assert error_to_status(SpearError("x", code="ok")).code is StatusCode.UNKNOWN


def test_headers_stay_within_what_clients_take() -> None:
    error = ConfigError("ü" * 10_000, problems=[f"a.b{n}: {'ü' * 1000}" for n in range(50)])
    status = error_to_status(error)
    assert len(status.details.encode()) * 3 + sum(len(v) for _, v in status.trailing) * 4 / 3 < 8000


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (StatusCode.UNAVAILABLE, NodeUnreachableError),
        (StatusCode.CANCELLED, NodeUnreachableError),
        (StatusCode.UNIMPLEMENTED, ProtocolError),
        (StatusCode.RESOURCE_EXHAUSTED, SpearError),
    ],
)
def test_a_status_without_details_says_what_it_can(code: StatusCode, cls: type[SpearError]) -> None:
    back = status_to_error(RpcError(code, "the words"), "grpc://here")
    assert type(back) is cls
    assert "the words" in back.message


@pytest.mark.parametrize("data", [b"", b"\xff\xff nonsense", b"\x08\x05"])
def test_details_of_somebody_else_do_no_harm(data: bytes) -> None:
    error = RpcError(StatusCode.NOT_FOUND, "gone", trailing=(("grpc-status-details-bin", data),))
    back = status_to_error(error, "x")
    assert (type(back), back.code, back.message) == (SpearError, "not_found", "gone")


def test_an_invalid_request_without_problems_describes_itself() -> None:
    ((_, data),) = error_to_status(InvalidRequestError("timeout_s: must be positive")).trailing
    assert isinstance(data, bytes)
    bad = error_details_pb2.BadRequest()
    assert status_pb2.Status.FromString(data).details[1].Unpack(bad)
    assert bad.field_violations[0].field == "timeout_s"
