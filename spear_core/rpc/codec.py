"""Heads: small structured values as msgpack maps, and what the two ends of a channel say in them.

Payloads never pass through here; they are raw bytes from end to end.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import msgspec

from spear_core.api import (
    ErrorInfo,
    ExecutionRequest,
    ExecutionResponse,
    ExecutionStatus,
    ExecutionUsage,
    IsolationLevel,
    Message,
    MessageFlag,
    MessageKind,
)
from spear_core.errors import (
    InvalidRequestError,
    ProtocolError,
    SpearError,
    error_from_code,
)

__all__ = [
    "RequestHead",
    "cut_text",
    "decode_head",
    "encode_head",
    "encode_small_head",
    "error_from_head",
    "error_to_head",
    "execution_request_from_args",
    "execution_request_from_message",
    "execution_request_to_args",
    "execution_request_to_message",
    "execution_response_from_head",
    "execution_response_from_message",
    "execution_response_to_head",
    "execution_response_to_message",
]

T = TypeVar("T")
Payload = bytes | bytearray | memoryview

_MAX_TEXT = 16_384
"""Bytes of an error message that go over the wire; a head has room for 65535."""

_NO_USAGE = ExecutionUsage()
_LEVELS = {int(level): level for level in IsolationLevel}

_MAX_HEAD = 0xFFFF

_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


class RequestHead(msgspec.Struct):
    """Head of a REQUEST or a NOTICE."""

    method: str
    args: dict[str, Any] = {}


class _ErrorHead(msgspec.Struct, omit_defaults=True):
    """Head of a RESPONSE with the flag ERROR."""

    name: str
    message: str
    code: str = "internal"
    retryable: bool = False
    retry_after: float | None = None
    current: int | None = None
    compacted: int | None = None
    pid: int | None = None
    problems: tuple[str, ...] | None = None
    failures: tuple[tuple[str, str], ...] | None = None
    task_id: str | None = None
    kind: str | None = None
    details: dict[str, str] | None = None


_ERROR_ATTRIBUTES = (
    "retry_after",
    "current",
    "compacted",
    "pid",
    "problems",
    "failures",
    "task_id",
    "kind",
    "details",
)


class _ErrorMap(msgspec.Struct, omit_defaults=True):
    code: str = "unknown"
    message: str = ""
    kind: str = ""
    details: dict[str, str] = {}


class _UsageMap(msgspec.Struct, omit_defaults=True):
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    isolation: int | None = None


class _ResponseMap(msgspec.Struct, omit_defaults=True):
    """Head of the RESPONSE to ``execute``."""

    status: str
    content_type: str = "application/octet-stream"
    error: _ErrorMap | None = None
    usage: _UsageMap | None = None


class _RequestArgs(msgspec.Struct):
    """Arguments of ``execute``."""

    execution_id: str
    task_id: str
    attempt: int = 1
    entry: str = ""
    content_type: str = "application/octet-stream"
    deadline_s: float | None = None
    trace: str = ""
    context: dict[str, str] = {}


class _ExecuteHead(msgspec.Struct):
    """Head of the REQUEST ``execute``, whole."""

    method: str
    args: _RequestArgs


def encode_head(value: object) -> bytes:
    """``value`` as msgpack: a dict, an attrs object, or anything else msgspec knows.

    **Raises** :exc:`TypeError` for a value that has no such form, and
    :exc:`~spear_core.errors.InvalidRequestError` for text that is no Unicode: a file name, an
    argument or a variable that was no UTF-8 to begin with; and for a number of more than 64 bits.
    """
    try:
        return _encode(value)
    except UnicodeEncodeError as exc:
        raise InvalidRequestError(f"{exc.object[:200]!r} is not valid Unicode text") from exc
    except OverflowError as exc:
        raise InvalidRequestError(f"a number does not fit into 64 bits: {exc}") from exc


def encode_small_head(head: dict[str, Any]) -> bytes:
    """:func:`encode_head`, for the head of one frame.

    **Raises** :exc:`~spear_core.errors.InvalidRequestError` when a frame cannot hold it.
    """
    data = encode_head(head)
    if len(data) > _MAX_HEAD:
        raise InvalidRequestError(f"a head has at most {_MAX_HEAD} bytes, this one {len(data)}")
    return data


def decode_head(data: bytes | memoryview, type: type[T]) -> T:  # noqa: A002 - msgspec's own word
    """msgpack as an instance of ``type`` (``dict``, an attrs class, …), checked against it.

    Keys that ``type`` does not have are ignored, so that a newer peer may say more. **Raises**
    :exc:`~spear_core.errors.ProtocolError` for anything else than a valid ``type``.
    """
    decoder = _decoders.get(type)
    if decoder is None:
        decoder = _decoders[type] = msgspec.msgpack.Decoder(type)
    try:
        return cast(T, decoder.decode(data))
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise ProtocolError(f"malformed head: {exc}") from exc


def cut_text(text: str, size: int) -> str:
    """``text``, without its end if it has more than ``size`` bytes in UTF-8."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")


def _converted(value: object, to: type[T]) -> T:
    """A value that came out of msgpack already, as ``to``."""
    try:
        return msgspec.convert(value, to)
    except msgspec.MsgspecError as exc:
        raise ProtocolError(f"malformed head: {exc}") from exc


def error_to_head(exc: Exception) -> bytes:
    """The head that lets the peer raise ``exc`` again; ``error_from_head`` is its inverse.

    An error that is not SPEAR's own goes as a plain ``SpearError`` with the code ``internal``.
    """
    if not isinstance(exc, SpearError):
        text = f"{type(exc).__name__}: {exc}"
        return _encode(_ErrorHead(name="SpearError", message=cut_text(text, _MAX_TEXT)))
    head = _ErrorHead(
        name=type(exc).__name__,
        message=cut_text(exc.message, _MAX_TEXT),
        code=exc.code,
        retryable=exc.retryable,
        **{name: _known(exc, name) for name in _ERROR_ATTRIBUTES},
    )
    data = _encode(head)
    if len(data) <= _MAX_HEAD:
        return data
    return _encode(_ErrorHead(head.name, head.message, head.code, head.retryable))


def _known(exc: SpearError, name: str) -> Any:
    value = getattr(exc, name, None)
    return None if value in ("", {}) else value


def error_from_head(data: bytes | memoryview) -> SpearError:
    """The error that a peer described, as an instance of the same class where we know it.

    **Raises** :exc:`~spear_core.errors.ProtocolError` when ``data`` describes no error.
    """
    head = decode_head(data, _ErrorHead)
    error = error_from_code(head.name, head.message, code=head.code, retryable=head.retryable)
    for name in _ERROR_ATTRIBUTES:
        value = getattr(head, name)
        if value is not None and hasattr(error, name):
            setattr(error, name, value)
    return error


def execution_request_to_args(request: ExecutionRequest) -> dict[str, Any]:
    """The arguments of ``execute``; the payload goes beside them."""
    args: dict[str, Any] = {
        "execution_id": request.execution_id,
        "task_id": request.task_id,
        "attempt": request.attempt,
        "entry": request.entry,
        "content_type": request.content_type,
        "deadline_s": request.deadline_s,
        "trace": request.trace,
    }
    if request.context:
        args["context"] = request.context
    return args


def execution_request_from_args(args: dict[str, Any], payload: Payload) -> ExecutionRequest:
    """The inverse of :func:`execution_request_to_args`.

    **Raises** :exc:`~spear_core.errors.ProtocolError` for arguments that do not fit.
    """
    return _request(_converted(args, _RequestArgs), payload)


def _request(known: _RequestArgs, payload: Payload) -> ExecutionRequest:
    return ExecutionRequest(
        execution_id=known.execution_id,
        task_id=known.task_id,
        attempt=known.attempt,
        entry=known.entry,
        payload=bytes(payload),
        content_type=known.content_type,
        deadline_s=known.deadline_s,
        trace=known.trace,
        context=known.context,
    )


def execution_request_to_message(request: ExecutionRequest, id: int) -> Message:  # noqa: A002
    """The REQUEST ``execute`` in one message."""
    head = _encode({"method": "execute", "args": execution_request_to_args(request)})
    return Message(MessageKind.REQUEST, id, 0, head, request.payload)


def execution_request_from_message(message: Message) -> ExecutionRequest:
    """The inverse of :func:`execution_request_to_message`.

    **Raises** :exc:`~spear_core.errors.ProtocolError` for any other message.
    """
    if message.kind != MessageKind.REQUEST:
        raise ProtocolError(f"expected a request, got a message of kind {message.kind}")
    head = decode_head(message.head, _ExecuteHead)
    if head.method != "execute":
        raise ProtocolError(f"expected a request to execute, got {head.method!r}")
    return _request(head.args, message.payload)


def execution_response_to_head(response: ExecutionResponse) -> dict[str, Any]:
    """The answer to ``execute``; the payload goes beside it."""
    head: dict[str, Any] = {"status": response.status.value}
    if response.error is None:
        head["content_type"] = response.content_type
    else:
        error = response.error
        head["error"] = {
            "code": error.code,
            "message": cut_text(error.message, _MAX_TEXT),
            "kind": error.kind,
            "details": dict(error.details),
        }
    usage = response.usage
    if usage != _NO_USAGE:
        head["usage"] = _UsageMap(usage.cpu_seconds, usage.peak_memory_bytes, usage.isolation)
    return head


def execution_response_from_head(head: dict[str, Any], payload: Payload) -> ExecutionResponse:
    """The inverse of :func:`execution_response_to_head`.

    **Raises** :exc:`~spear_core.errors.ProtocolError` for a head that is no such answer.
    """
    return _response(_converted(head, _ResponseMap), payload)


def _usage(known: _UsageMap | None) -> ExecutionUsage:
    if known is None:
        return _NO_USAGE
    level = known.isolation
    return ExecutionUsage(
        cpu_seconds=known.cpu_seconds,
        peak_memory_bytes=known.peak_memory_bytes,
        isolation=None if level is None or level not in _LEVELS else _LEVELS[level],
    )


def _response(known: _ResponseMap, payload: Payload) -> ExecutionResponse:
    spent = _usage(known.usage)
    if known.status == "completed" and known.error is None:
        return ExecutionResponse(
            status=ExecutionStatus.COMPLETED,
            payload=bytes(payload),
            content_type=known.content_type,
            usage=spent,
        )
    if known.status != "failed" or known.error is None:
        raise ProtocolError(f"malformed answer to execute: status {known.status!r}")
    error = ErrorInfo(
        code=known.error.code,
        message=known.error.message,
        kind=known.error.kind,
        details=known.error.details,
    )
    return ExecutionResponse(status=ExecutionStatus.FAILED, error=error, usage=spent)


def execution_response_to_message(response: ExecutionResponse, id: int) -> Message:  # noqa: A002
    """The RESPONSE to ``execute`` in one message."""
    head = _encode(execution_response_to_head(response))
    return Message(MessageKind.RESPONSE, id, 0, head, response.payload)


def execution_response_from_message(message: Message) -> ExecutionResponse:
    """The inverse of :func:`execution_response_to_message`.

    **Raises** the error that the peer describes when the flag ERROR is set, and
    :exc:`~spear_core.errors.ProtocolError` for any other message.
    """
    if message.kind != MessageKind.RESPONSE:
        raise ProtocolError(f"expected an answer, got a message of kind {message.kind}")
    if message.flags & MessageFlag.ERROR:
        raise error_from_head(message.head)
    return _response(decode_head(message.head, _ResponseMap), message.payload)
