from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("kind", "id", "flags", "head", "payload", "end")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    kind: int
    id: int
    flags: int
    head: bytes
    payload: bytes
    end: bool
    def __init__(self, kind: _Optional[int] = ..., id: _Optional[int] = ..., flags: _Optional[int] = ..., head: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., end: bool = ...) -> None: ...
