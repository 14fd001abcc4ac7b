from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import Any as _Any, ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Runtime(_message.Message):
    __slots__ = ("name", "health", "message", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    name: str
    health: str
    message: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., health: _Optional[str] = ..., message: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node_id", "version", "pid", "started_at", "state_dir", "running", "queued", "instances", "total_executions", "successful_executions", "failed_executions", "average_execution_time_ms", "runtimes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    STATE_DIR_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    SUCCESSFUL_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    FAILED_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_EXECUTION_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    version: str
    pid: int
    started_at: float
    state_dir: str
    running: int
    queued: int
    instances: int
    total_executions: int
    successful_executions: int
    failed_executions: int
    average_execution_time_ms: float
    runtimes: _containers.RepeatedCompositeFieldContainer[Runtime]
    def __init__(self, node_id: _Optional[str] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., started_at: _Optional[float] = ..., state_dir: _Optional[str] = ..., running: _Optional[int] = ..., queued: _Optional[int] = ..., instances: _Optional[int] = ..., total_executions: _Optional[int] = ..., successful_executions: _Optional[int] = ..., failed_executions: _Optional[int] = ..., average_execution_time_ms: _Optional[float] = ..., runtimes: _Optional[_Iterable[_Union[Runtime, _Mapping[str, _Any]]]] = ...) -> None: ...

class GetMetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("bounds_s", "counts", "sum_s")
    BOUNDS_S_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_S_FIELD_NUMBER: _ClassVar[int]
    bounds_s: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum_s: float
    def __init__(self, bounds_s: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum_s: _Optional[float] = ...) -> None: ...

class ExecutionMetrics(_message.Message):
    __slots__ = ("total_executions", "successful_executions", "failed_executions", "retried_executions", "average_execution_time_ms", "active_instances", "queue_length", "running", "cold_starts", "warm_starts", "cpu_seconds", "peak_memory_bytes", "execution_time", "queue_time")
    TOTAL_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    SUCCESSFUL_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    FAILED_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    RETRIED_EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_EXECUTION_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    COLD_STARTS_FIELD_NUMBER: _ClassVar[int]
    WARM_STARTS_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_TIME_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    total_executions: int
    successful_executions: int
    failed_executions: int
    retried_executions: int
    average_execution_time_ms: float
    active_instances: int
    queue_length: int
    running: int
    cold_starts: int
    warm_starts: int
    cpu_seconds: float
    peak_memory_bytes: int
    execution_time: Histogram
    queue_time: Histogram
    def __init__(self, total_executions: _Optional[int] = ..., successful_executions: _Optional[int] = ..., failed_executions: _Optional[int] = ..., retried_executions: _Optional[int] = ..., average_execution_time_ms: _Optional[float] = ..., active_instances: _Optional[int] = ..., queue_length: _Optional[int] = ..., running: _Optional[int] = ..., cold_starts: _Optional[int] = ..., warm_starts: _Optional[int] = ..., cpu_seconds: _Optional[float] = ..., peak_memory_bytes: _Optional[int] = ..., execution_time: _Optional[_Union[Histogram, _Mapping[str, _Any]]] = ..., queue_time: _Optional[_Union[Histogram, _Mapping[str, _Any]]] = ...) -> None: ...

class ArtifactMetrics(_message.Message):
    __slots__ = ("artifact", "metrics", "memory_bytes")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    artifact: str
    metrics: ExecutionMetrics
    memory_bytes: int
    def __init__(self, artifact: _Optional[str] = ..., metrics: _Optional[_Union[ExecutionMetrics, _Mapping[str, _Any]]] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class NodeMetrics(_message.Message):
    __slots__ = ("node_id", "total", "artifacts", "rejected", "errors", "version", "started_at", "cpu_seconds", "memory_bytes")
    class ErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    total: ExecutionMetrics
    artifacts: _containers.RepeatedCompositeFieldContainer[ArtifactMetrics]
    rejected: int
    errors: _containers.ScalarMap[str, int]
    version: str
    started_at: float
    cpu_seconds: float
    memory_bytes: int
    def __init__(self, node_id: _Optional[str] = ..., total: _Optional[_Union[ExecutionMetrics, _Mapping[str, _Any]]] = ..., artifacts: _Optional[_Iterable[_Union[ArtifactMetrics, _Mapping[str, _Any]]]] = ..., rejected: _Optional[int] = ..., errors: _Optional[_Mapping[str, int]] = ..., version: _Optional[str] = ..., started_at: _Optional[float] = ..., cpu_seconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class ListPluginsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Plugin(_message.Message):
    __slots__ = ("name", "distribution", "version", "provides", "state", "reason", "health")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROVIDES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    distribution: str
    version: str
    provides: _containers.RepeatedScalarFieldContainer[str]
    state: str
    reason: str
    health: str
    def __init__(self, name: _Optional[str] = ..., distribution: _Optional[str] = ..., version: _Optional[str] = ..., provides: _Optional[_Iterable[str]] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., health: _Optional[str] = ...) -> None: ...

class ListPluginsResponse(_message.Message):
    __slots__ = ("plugins",)
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    plugins: _containers.RepeatedCompositeFieldContainer[Plugin]
    def __init__(self, plugins: _Optional[_Iterable[_Union[Plugin, _Mapping[str, _Any]]]] = ...) -> None: ...

class ReloadConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadConfigResponse(_message.Message):
    __slots__ = ("path", "changed", "restart")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    path: str
    changed: _containers.RepeatedScalarFieldContainer[str]
    restart: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, path: _Optional[str] = ..., changed: _Optional[_Iterable[str]] = ..., restart: _Optional[_Iterable[str]] = ...) -> None: ...

class BackupRequest(_message.Message):
    __slots__ = ("directory", "logs")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    LOGS_FIELD_NUMBER: _ClassVar[int]
    directory: str
    logs: bool
    def __init__(self, directory: _Optional[str] = ..., logs: bool = ...) -> None: ...

class BackupReport(_message.Message):
    __slots__ = ("path", "created_at", "node_id", "files", "bytes", "records", "objects", "artifacts")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    path: str
    created_at: float
    node_id: str
    files: int
    bytes: int
    records: int
    objects: int
    artifacts: int
    def __init__(self, path: _Optional[str] = ..., created_at: _Optional[float] = ..., node_id: _Optional[str] = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ..., records: _Optional[int] = ..., objects: _Optional[int] = ..., artifacts: _Optional[int] = ...) -> None: ...

class BackupResponse(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: str
    report: BackupReport
    def __init__(self, progress: _Optional[str] = ..., report: _Optional[_Union[BackupReport, _Mapping[str, _Any]]] = ...) -> None: ...
