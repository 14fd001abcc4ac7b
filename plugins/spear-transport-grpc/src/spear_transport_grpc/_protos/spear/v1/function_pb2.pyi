from spear_transport_grpc._protos.spear.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import Any as _Any, ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExecutionMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTION_MODE_UNSPECIFIED: _ClassVar[ExecutionMode]
    EXECUTION_MODE_SYNC: _ClassVar[ExecutionMode]
    EXECUTION_MODE_ASYNC: _ClassVar[ExecutionMode]
    EXECUTION_MODE_STREAM: _ClassVar[ExecutionMode]
EXECUTION_MODE_UNSPECIFIED: ExecutionMode
EXECUTION_MODE_SYNC: ExecutionMode
EXECUTION_MODE_ASYNC: ExecutionMode
EXECUTION_MODE_STREAM: ExecutionMode

class InvokeFunctionRequest(_message.Message):
    __slots__ = ("function", "payload", "content_type", "mode", "timeout_s", "trace", "priority", "idempotency_key", "caller", "context", "parent_task_id", "detached", "input_object")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PARENT_TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    INPUT_OBJECT_FIELD_NUMBER: _ClassVar[int]
    function: str
    payload: bytes
    content_type: str
    mode: ExecutionMode
    timeout_s: float
    trace: str
    priority: _common_pb2.Priority
    idempotency_key: str
    caller: str
    context: _containers.ScalarMap[str, str]
    parent_task_id: str
    detached: bool
    input_object: str
    def __init__(self, function: _Optional[str] = ..., payload: _Optional[bytes] = ..., content_type: _Optional[str] = ..., mode: _Optional[_Union[ExecutionMode, str]] = ..., timeout_s: _Optional[float] = ..., trace: _Optional[str] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ..., idempotency_key: _Optional[str] = ..., caller: _Optional[str] = ..., context: _Optional[_Mapping[str, str]] = ..., parent_task_id: _Optional[str] = ..., detached: bool = ..., input_object: _Optional[str] = ...) -> None: ...

class InvokeFunctionResponse(_message.Message):
    __slots__ = ("success", "message", "execution_id", "task_id", "result", "status_endpoint", "estimated_completion_ms", "task")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STATUS_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_COMPLETION_MS_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    success: bool
    message: str
    execution_id: str
    task_id: str
    result: _common_pb2.ExecutionResult
    status_endpoint: str
    estimated_completion_ms: int
    task: _common_pb2.Task
    def __init__(self, success: bool = ..., message: _Optional[str] = ..., execution_id: _Optional[str] = ..., task_id: _Optional[str] = ..., result: _Optional[_Union[_common_pb2.ExecutionResult, _Mapping[str, _Any]]] = ..., status_endpoint: _Optional[str] = ..., estimated_completion_ms: _Optional[int] = ..., task: _Optional[_Union[_common_pb2.Task, _Mapping[str, _Any]]] = ...) -> None: ...

class StreamFunctionRequest(_message.Message):
    __slots__ = ("open", "data")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    open: InvokeFunctionRequest
    data: bytes
    def __init__(self, open: _Optional[_Union[InvokeFunctionRequest, _Mapping[str, _Any]]] = ..., data: _Optional[bytes] = ...) -> None: ...

class StreamFunctionResponse(_message.Message):
    __slots__ = ("opened", "data", "end_of_output", "finished")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_OF_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    opened: StreamOpened
    data: bytes
    end_of_output: StreamEndOfOutput
    finished: InvokeFunctionResponse
    def __init__(self, opened: _Optional[_Union[StreamOpened, _Mapping[str, _Any]]] = ..., data: _Optional[bytes] = ..., end_of_output: _Optional[_Union[StreamEndOfOutput, _Mapping[str, _Any]]] = ..., finished: _Optional[_Union[InvokeFunctionResponse, _Mapping[str, _Any]]] = ...) -> None: ...

class StreamOpened(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class StreamEndOfOutput(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
