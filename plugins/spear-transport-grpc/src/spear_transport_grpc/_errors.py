"""SPEAR's errors as gRPC statuses with rich details, and back.

The details are a ``google.rpc.Status`` in the trailing metadata ``grpc-status-details-bin``, as
gRPC's libraries in every language know it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf.message import DecodeError, Message

from spear_core.errors import (
    NodeUnreachableError,
    ProtocolError,
    SpearError,
    error_from_code,
)
from spear_core.rpc.codec import cut_text
from spear_transport_grpc._bridge import RpcError, StatusCode
from spear_transport_grpc._protos.google.rpc import error_details_pb2, status_pb2

__all__ = ["DOMAIN", "error_to_status", "status_to_error"]

DOMAIN = "spear"
_DETAILS = "grpc-status-details-bin"
_LONGEST_TEXT = 900
"""Bytes of the message: a client may refuse more than 8 KiB of headers, and it is in them twice,
once with every byte beyond ASCII as three."""
_LONGEST_DETAILS = 3500
_LONGEST_FACT = 600
_NUMBERS = ("compacted", "current", "pid")
"""What some errors know beside their message; each is metadata of its ErrorInfo."""
_FIELD = re.compile(r"^([A-Za-z_][\w.\[\]-]*): (.+)$")


def error_to_status(error: SpearError) -> RpcError:
    """The status that tells a client of any language what happened."""
    code = _code(error.code)
    text = cut_text(error.message, _LONGEST_TEXT)
    status = status_pb2.Status(code=int(code), message=text)
    for number, detail in enumerate(_details(error)):
        status.details.add().Pack(detail)
        if number and status.ByteSize() > _LONGEST_DETAILS:
            del status.details[-1]
            break
    return RpcError(code, text, trailing=((_DETAILS, status.SerializeToString()),))


def _details(error: SpearError) -> Iterator[Message]:
    """The details, the most useful first."""
    metadata = {"retryable": str(error.retryable).lower()}
    for name in _NUMBERS:
        if getattr(error, name, None) is not None:
            metadata[name] = str(getattr(error, name))
    yield error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN, metadata=metadata)
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(int(max(0.0, retry_after) * 1e9))
        yield info
    violations = list(_violations(error))
    if violations:
        yield error_details_pb2.BadRequest(field_violations=violations)


def _violations(error: SpearError) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    """What is wrong with the request, one by one, where the error says so."""
    if error.code != "invalid_argument":
        return
    for problem in getattr(error, "problems", ()) or (error.message,):
        named = _FIELD.match(problem)
        yield error_details_pb2.BadRequest.FieldViolation(
            field=cut_text(named[1], 100) if named else "",
            description=cut_text(named[2] if named else problem, _LONGEST_FACT),
        )


def _code(name: str) -> StatusCode:
    try:
        code = StatusCode[name.upper()]
    except KeyError:
        return StatusCode.UNKNOWN
    return StatusCode.UNKNOWN if code is StatusCode.OK else code


def status_to_error(error: RpcError, where: str) -> SpearError:
    """The error that the node raised, or one that says why it did not answer.

    :param where: the node's address, for the message.
    """
    for key, value in error.trailing:
        if key == _DETAILS and isinstance(value, bytes):
            known = _rebuilt(value)
            if known is not None:
                return known
    details = error.details or error.code.name.lower()
    if error.code in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED):
        return NodeUnreachableError(f"the node at {where} does not answer: {details}")
    if error.code is StatusCode.UNIMPLEMENTED:
        return ProtocolError(
            f"the node at {where} does not know this call; it is of another version: {details}",
            code="unimplemented",
        )
    return SpearError(details, code=error.code.name.lower())


def _rebuilt(data: bytes) -> SpearError | None:
    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        if detail.Unpack(info):
            continue
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    if info.domain != DOMAIN:
        return None
    error = error_from_code(
        info.reason,
        status.message,
        code=StatusCode.of(status.code).name.lower(),
        retryable=info.metadata.get("retryable") == "true",
    )
    if retry_after is not None and hasattr(error, "retry_after"):
        error.retry_after = retry_after
    for name in _NUMBERS:
        if hasattr(error, name) and info.metadata.get(name, "").isdigit():
            setattr(error, name, int(info.metadata[name]))
    return error
