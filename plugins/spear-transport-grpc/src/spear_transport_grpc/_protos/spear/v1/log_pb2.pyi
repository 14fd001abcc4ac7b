from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import Any as _Any, ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadLogRequest(_message.Message):
    __slots__ = ("task_id", "cursor", "wait")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    cursor: int
    wait: bool
    def __init__(self, task_id: _Optional[str] = ..., cursor: _Optional[int] = ..., wait: bool = ...) -> None: ...

class FollowLogRequest(_message.Message):
    __slots__ = ("task_id", "cursor")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    cursor: int
    def __init__(self, task_id: _Optional[str] = ..., cursor: _Optional[int] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("seq", "ts", "level", "source", "message", "execution_id", "trace_id")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    seq: int
    ts: float
    level: str
    source: str
    message: str
    execution_id: str
    trace_id: str
    def __init__(self, seq: _Optional[int] = ..., ts: _Optional[float] = ..., level: _Optional[str] = ..., source: _Optional[str] = ..., message: _Optional[str] = ..., execution_id: _Optional[str] = ..., trace_id: _Optional[str] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("entries", "cursor", "finished")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[LogEntry]
    cursor: int
    finished: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[LogEntry, _Mapping[str, _Any]]]] = ..., cursor: _Optional[int] = ..., finished: bool = ...) -> None: ...
