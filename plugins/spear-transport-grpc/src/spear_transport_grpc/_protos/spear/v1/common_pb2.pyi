from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import Any as _Any, ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_STATE_UNSPECIFIED: _ClassVar[TaskState]
    TASK_STATE_PENDING: _ClassVar[TaskState]
    TASK_STATE_RUNNING: _ClassVar[TaskState]
    TASK_STATE_RETRYING: _ClassVar[TaskState]
    TASK_STATE_COMPLETED: _ClassVar[TaskState]
    TASK_STATE_FAILED: _ClassVar[TaskState]
    TASK_STATE_CANCELLED: _ClassVar[TaskState]
    TASK_STATE_TIMEOUT: _ClassVar[TaskState]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]
    PRIORITY_URGENT: _ClassVar[Priority]

class IsolationLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ISOLATION_LEVEL_NONE: _ClassVar[IsolationLevel]
    ISOLATION_LEVEL_LIMITS: _ClassVar[IsolationLevel]
    ISOLATION_LEVEL_SYSCALLS: _ClassVar[IsolationLevel]
    ISOLATION_LEVEL_NAMESPACES: _ClassVar[IsolationLevel]
    ISOLATION_LEVEL_CGROUP: _ClassVar[IsolationLevel]
TASK_STATE_UNSPECIFIED: TaskState
TASK_STATE_PENDING: TaskState
TASK_STATE_RUNNING: TaskState
TASK_STATE_RETRYING: TaskState
TASK_STATE_COMPLETED: TaskState
TASK_STATE_FAILED: TaskState
TASK_STATE_CANCELLED: TaskState
TASK_STATE_TIMEOUT: TaskState
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
PRIORITY_URGENT: Priority
ISOLATION_LEVEL_NONE: IsolationLevel
ISOLATION_LEVEL_LIMITS: IsolationLevel
ISOLATION_LEVEL_SYSCALLS: IsolationLevel
ISOLATION_LEVEL_NAMESPACES: IsolationLevel
ISOLATION_LEVEL_CGROUP: IsolationLevel

class Error(_message.Message):
    __slots__ = ("code", "message", "kind", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    kind: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., kind: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("cpu_seconds", "peak_memory_bytes", "isolation")
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    cpu_seconds: float
    peak_memory_bytes: int
    isolation: IsolationLevel
    def __init__(self, cpu_seconds: _Optional[float] = ..., peak_memory_bytes: _Optional[int] = ..., isolation: _Optional[_Union[IsolationLevel, str]] = ...) -> None: ...

class ExecutionResult(_message.Message):
    __slots__ = ("status", "output", "object_key", "error", "started_at", "completed_at", "execution_time_ms", "instance_id", "node_id", "attempt", "content_type", "queue_time_ms", "cold", "usage", "object_size")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    OBJECT_KEY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    COLD_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    OBJECT_SIZE_FIELD_NUMBER: _ClassVar[int]
    status: TaskState
    output: bytes
    object_key: str
    error: Error
    started_at: float
    completed_at: float
    execution_time_ms: float
    instance_id: str
    node_id: str
    attempt: int
    content_type: str
    queue_time_ms: float
    cold: bool
    usage: Usage
    object_size: int
    def __init__(self, status: _Optional[_Union[TaskState, str]] = ..., output: _Optional[bytes] = ..., object_key: _Optional[str] = ..., error: _Optional[_Union[Error, _Mapping[str, _Any]]] = ..., started_at: _Optional[float] = ..., completed_at: _Optional[float] = ..., execution_time_ms: _Optional[float] = ..., instance_id: _Optional[str] = ..., node_id: _Optional[str] = ..., attempt: _Optional[int] = ..., content_type: _Optional[str] = ..., queue_time_ms: _Optional[float] = ..., cold: bool = ..., usage: _Optional[_Union[Usage, _Mapping[str, _Any]]] = ..., object_size: _Optional[int] = ...) -> None: ...

class Execution(_message.Message):
    __slots__ = ("execution_id", "attempt", "instance_id", "started_at", "completed_at", "error")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    attempt: int
    instance_id: str
    started_at: float
    completed_at: float
    error: Error
    def __init__(self, execution_id: _Optional[str] = ..., attempt: _Optional[int] = ..., instance_id: _Optional[str] = ..., started_at: _Optional[float] = ..., completed_at: _Optional[float] = ..., error: _Optional[_Union[Error, _Mapping[str, _Any]]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "execution_id", "function", "state", "created_at", "started_at", "completed_at", "result", "priority", "caller", "parent_task_id", "attempt", "failed_executions")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PARENT_TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAILED_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    execution_id: str
    function: str
    state: TaskState
    created_at: float
    started_at: float
    completed_at: float
    result: ExecutionResult
    priority: Priority
    caller: str
    parent_task_id: str
    attempt: int
    failed_executions: _containers.RepeatedCompositeFieldContainer[Execution]
    def __init__(self, task_id: _Optional[str] = ..., execution_id: _Optional[str] = ..., function: _Optional[str] = ..., state: _Optional[_Union[TaskState, str]] = ..., created_at: _Optional[float] = ..., started_at: _Optional[float] = ..., completed_at: _Optional[float] = ..., result: _Optional[_Union[ExecutionResult, _Mapping[str, _Any]]] = ..., priority: _Optional[_Union[Priority, str]] = ..., caller: _Optional[str] = ..., parent_task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., failed_executions: _Optional[_Iterable[_Union[Execution, _Mapping[str, _Any]]]] = ...) -> None: ...
