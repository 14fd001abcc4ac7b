from spear_transport_grpc._protos.spear.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import Any as _Any, ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ArtifactState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARTIFACT_STATE_UNSPECIFIED: _ClassVar[ArtifactState]
    ARTIFACT_STATE_READY: _ClassVar[ArtifactState]
    ARTIFACT_STATE_DISABLED: _ClassVar[ArtifactState]
    ARTIFACT_STATE_DELETING: _ClassVar[ArtifactState]
    ARTIFACT_STATE_PREPARING: _ClassVar[ArtifactState]
ARTIFACT_STATE_UNSPECIFIED: ArtifactState
ARTIFACT_STATE_READY: ArtifactState
ARTIFACT_STATE_DISABLED: ArtifactState
ARTIFACT_STATE_DELETING: ArtifactState
ARTIFACT_STATE_PREPARING: ArtifactState

class Limits(_message.Message):
    __slots__ = ("memory_bytes", "cpu_seconds", "open_files", "processes", "output_bytes")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    cpu_seconds: float
    open_files: int
    processes: int
    output_bytes: int
    def __init__(self, memory_bytes: _Optional[int] = ..., cpu_seconds: _Optional[float] = ..., open_files: _Optional[int] = ..., processes: _Optional[int] = ..., output_bytes: _Optional[int] = ...) -> None: ...

class Resources(_message.Message):
    __slots__ = ("cpu", "memory_bytes")
    CPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpu: float
    memory_bytes: int
    def __init__(self, cpu: _Optional[float] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class RetryPolicy(_message.Message):
    __slots__ = ("attempts", "initial_backoff_s", "max_backoff_s", "multiplier", "jitter")
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_BACKOFF_S_FIELD_NUMBER: _ClassVar[int]
    MAX_BACKOFF_S_FIELD_NUMBER: _ClassVar[int]
    MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    JITTER_FIELD_NUMBER: _ClassVar[int]
    attempts: int
    initial_backoff_s: float
    max_backoff_s: float
    multiplier: float
    jitter: float
    def __init__(self, attempts: _Optional[int] = ..., initial_backoff_s: _Optional[float] = ..., max_backoff_s: _Optional[float] = ..., multiplier: _Optional[float] = ..., jitter: _Optional[float] = ...) -> None: ...

class PoolSettings(_message.Message):
    __slots__ = ("min_instances", "max_instances", "idle_timeout_ms", "health_check_interval_ms", "max_executions_per_instance", "selection")
    MIN_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    MAX_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_CHECK_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_EXECUTIONS_PER_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    min_instances: int
    max_instances: int
    idle_timeout_ms: int
    health_check_interval_ms: int
    max_executions_per_instance: int
    selection: str
    def __init__(self, min_instances: _Optional[int] = ..., max_instances: _Optional[int] = ..., idle_timeout_ms: _Optional[int] = ..., health_check_interval_ms: _Optional[int] = ..., max_executions_per_instance: _Optional[int] = ..., selection: _Optional[str] = ...) -> None: ...

class ObjectGrants(_message.Message):
    __slots__ = ("read", "write")
    READ_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    read: _containers.RepeatedScalarFieldContainer[str]
    write: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, read: _Optional[_Iterable[str]] = ..., write: _Optional[_Iterable[str]] = ...) -> None: ...

class ArtifactSettings(_message.Message):
    __slots__ = ("entry", "env", "secrets", "args", "limits", "resources", "required_isolation", "timeout_s", "idempotent", "retry", "max_concurrent", "concurrency", "weight", "pool", "requirements", "dependencies", "objects")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_ISOLATION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENT_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    DEPENDENCIES_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    entry: str
    env: _containers.ScalarMap[str, str]
    secrets: _containers.ScalarMap[str, str]
    args: _containers.RepeatedScalarFieldContainer[str]
    limits: Limits
    resources: Resources
    required_isolation: _common_pb2.IsolationLevel
    timeout_s: float
    idempotent: bool
    retry: RetryPolicy
    max_concurrent: int
    concurrency: int
    weight: float
    pool: PoolSettings
    requirements: _containers.RepeatedScalarFieldContainer[str]
    dependencies: _containers.RepeatedScalarFieldContainer[str]
    objects: ObjectGrants
    def __init__(self, entry: _Optional[str] = ..., env: _Optional[_Mapping[str, str]] = ..., secrets: _Optional[_Mapping[str, str]] = ..., args: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[Limits, _Mapping[str, _Any]]] = ..., resources: _Optional[_Union[Resources, _Mapping[str, _Any]]] = ..., required_isolation: _Optional[_Union[_common_pb2.IsolationLevel, str]] = ..., timeout_s: _Optional[float] = ..., idempotent: bool = ..., retry: _Optional[_Union[RetryPolicy, _Mapping[str, _Any]]] = ..., max_concurrent: _Optional[int] = ..., concurrency: _Optional[int] = ..., weight: _Optional[float] = ..., pool: _Optional[_Union[PoolSettings, _Mapping[str, _Any]]] = ..., requirements: _Optional[_Iterable[str]] = ..., dependencies: _Optional[_Iterable[str]] = ..., objects: _Optional[_Union[ObjectGrants, _Mapping[str, _Any]]] = ...) -> None: ...

class DeployArtifactHeader(_message.Message):
    __slots__ = ("name", "filename", "size", "bundle", "runtime", "reuse", "executable", "settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    EXECUTABLE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    filename: str
    size: int
    bundle: bool
    runtime: str
    reuse: bool
    executable: bool
    settings: ArtifactSettings
    def __init__(self, name: _Optional[str] = ..., filename: _Optional[str] = ..., size: _Optional[int] = ..., bundle: bool = ..., runtime: _Optional[str] = ..., reuse: bool = ..., executable: bool = ..., settings: _Optional[_Union[ArtifactSettings, _Mapping[str, _Any]]] = ...) -> None: ...

class DeployArtifactRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: DeployArtifactHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[DeployArtifactHeader, _Mapping[str, _Any]]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("name", "version", "digest", "size", "runtime", "shape", "filename", "entry", "created_at", "in_use", "state", "latest", "message")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    digest: str
    size: int
    runtime: str
    shape: str
    filename: str
    entry: str
    created_at: float
    in_use: int
    state: ArtifactState
    latest: bool
    message: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., runtime: _Optional[str] = ..., shape: _Optional[str] = ..., filename: _Optional[str] = ..., entry: _Optional[str] = ..., created_at: _Optional[float] = ..., in_use: _Optional[int] = ..., state: _Optional[_Union[ArtifactState, str]] = ..., latest: bool = ..., message: _Optional[str] = ...) -> None: ...

class ArtifactDetails(_message.Message):
    __slots__ = ("info", "settings", "reuse", "bundle", "dependents")
    INFO_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    DEPENDENTS_FIELD_NUMBER: _ClassVar[int]
    info: Artifact
    settings: ArtifactSettings
    reuse: bool
    bundle: bool
    dependents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, info: _Optional[_Union[Artifact, _Mapping[str, _Any]]] = ..., settings: _Optional[_Union[ArtifactSettings, _Mapping[str, _Any]]] = ..., reuse: bool = ..., bundle: bool = ..., dependents: _Optional[_Iterable[str]] = ...) -> None: ...

class ListArtifactsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListArtifactsResponse(_message.Message):
    __slots__ = ("artifacts",)
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    def __init__(self, artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping[str, _Any]]]] = ...) -> None: ...

class GetArtifactRequest(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: str
    def __init__(self, ref: _Optional[str] = ...) -> None: ...

class DeleteArtifactRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class DeleteArtifactResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    def __init__(self, deleted: _Optional[int] = ...) -> None: ...

class SetLatestRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class SetStateRequest(_message.Message):
    __slots__ = ("name", "version", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    state: ArtifactState
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[ArtifactState, str]] = ...) -> None: ...
