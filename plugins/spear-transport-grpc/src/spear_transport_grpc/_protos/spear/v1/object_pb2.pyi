from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import Any as _Any, ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ObjectStat(_message.Message):
    __slots__ = ("key", "size", "version", "revision", "sha256", "created_at", "updated_at", "content_type", "refs", "pinned", "expires_at")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    key: str
    size: int
    version: int
    revision: int
    sha256: str
    created_at: float
    updated_at: float
    content_type: str
    refs: int
    pinned: bool
    expires_at: float
    def __init__(self, key: _Optional[str] = ..., size: _Optional[int] = ..., version: _Optional[int] = ..., revision: _Optional[int] = ..., sha256: _Optional[str] = ..., created_at: _Optional[float] = ..., updated_at: _Optional[float] = ..., content_type: _Optional[str] = ..., refs: _Optional[int] = ..., pinned: bool = ..., expires_at: _Optional[float] = ...) -> None: ...

class ObjectState(_message.Message):
    __slots__ = ("now",)
    NOW_FIELD_NUMBER: _ClassVar[int]
    now: ObjectStat
    def __init__(self, now: _Optional[_Union[ObjectStat, _Mapping[str, _Any]]] = ...) -> None: ...

class ObjectExpectation(_message.Message):
    __slots__ = ("version", "sha256")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    version: int
    sha256: str
    def __init__(self, version: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class PutObjectHeader(_message.Message):
    __slots__ = ("key", "expect", "content_type", "ttl", "hashed", "size", "sha256")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    HASHED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    key: str
    expect: ObjectExpectation
    content_type: str
    ttl: float
    hashed: bool
    size: int
    sha256: str
    def __init__(self, key: _Optional[str] = ..., expect: _Optional[_Union[ObjectExpectation, _Mapping[str, _Any]]] = ..., content_type: _Optional[str] = ..., ttl: _Optional[float] = ..., hashed: bool = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class PutObjectCommit(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: int
    def __init__(self, size: _Optional[int] = ...) -> None: ...

class PutObjectRequest(_message.Message):
    __slots__ = ("header", "chunk", "commit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    header: PutObjectHeader
    chunk: bytes
    commit: PutObjectCommit
    def __init__(self, header: _Optional[_Union[PutObjectHeader, _Mapping[str, _Any]]] = ..., chunk: _Optional[bytes] = ..., commit: _Optional[_Union[PutObjectCommit, _Mapping[str, _Any]]] = ...) -> None: ...

class GetObjectRequest(_message.Message):
    __slots__ = ("key", "version", "offset")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    key: str
    version: int
    offset: int
    def __init__(self, key: _Optional[str] = ..., version: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class GetObjectResponse(_message.Message):
    __slots__ = ("stat", "chunk")
    STAT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    stat: ObjectStat
    chunk: bytes
    def __init__(self, stat: _Optional[_Union[ObjectStat, _Mapping[str, _Any]]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class StatObjectRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class ListObjectsRequest(_message.Message):
    __slots__ = ("prefix", "after", "limit")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    after: str
    limit: int
    def __init__(self, prefix: _Optional[str] = ..., after: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListObjectsResponse(_message.Message):
    __slots__ = ("objects", "next_key", "revision")
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_KEY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.RepeatedCompositeFieldContainer[ObjectStat]
    next_key: str
    revision: int
    def __init__(self, objects: _Optional[_Iterable[_Union[ObjectStat, _Mapping[str, _Any]]]] = ..., next_key: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class PutObjectOperation(_message.Message):
    __slots__ = ("key", "value", "expect", "content_type", "ttl", "hashed")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    HASHED_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: bytes
    expect: ObjectExpectation
    content_type: str
    ttl: float
    hashed: bool
    def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ..., expect: _Optional[_Union[ObjectExpectation, _Mapping[str, _Any]]] = ..., content_type: _Optional[str] = ..., ttl: _Optional[float] = ..., hashed: bool = ...) -> None: ...

class DeleteObjectOperation(_message.Message):
    __slots__ = ("key", "expect")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    key: str
    expect: ObjectExpectation
    def __init__(self, key: _Optional[str] = ..., expect: _Optional[_Union[ObjectExpectation, _Mapping[str, _Any]]] = ...) -> None: ...

class CheckObjectOperation(_message.Message):
    __slots__ = ("key", "expect")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    key: str
    expect: ObjectExpectation
    def __init__(self, key: _Optional[str] = ..., expect: _Optional[_Union[ObjectExpectation, _Mapping[str, _Any]]] = ...) -> None: ...

class ObjectOperation(_message.Message):
    __slots__ = ("put", "delete", "check")
    PUT_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    put: PutObjectOperation
    delete: DeleteObjectOperation
    check: CheckObjectOperation
    def __init__(self, put: _Optional[_Union[PutObjectOperation, _Mapping[str, _Any]]] = ..., delete: _Optional[_Union[DeleteObjectOperation, _Mapping[str, _Any]]] = ..., check: _Optional[_Union[CheckObjectOperation, _Mapping[str, _Any]]] = ...) -> None: ...

class TransactObjectsRequest(_message.Message):
    __slots__ = ("operations",)
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[ObjectOperation]
    def __init__(self, operations: _Optional[_Iterable[_Union[ObjectOperation, _Mapping[str, _Any]]]] = ...) -> None: ...

class TransactObjectsResponse(_message.Message):
    __slots__ = ("objects",)
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.RepeatedCompositeFieldContainer[ObjectState]
    def __init__(self, objects: _Optional[_Iterable[_Union[ObjectState, _Mapping[str, _Any]]]] = ...) -> None: ...

class AddReferenceRequest(_message.Message):
    __slots__ = ("key", "holder")
    KEY_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    key: str
    holder: str
    def __init__(self, key: _Optional[str] = ..., holder: _Optional[str] = ...) -> None: ...

class RemoveReferenceRequest(_message.Message):
    __slots__ = ("key", "holder")
    KEY_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    key: str
    holder: str
    def __init__(self, key: _Optional[str] = ..., holder: _Optional[str] = ...) -> None: ...

class ListHoldersRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class ObjectHolder(_message.Message):
    __slots__ = ("name", "refs", "ttl")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    name: str
    refs: int
    ttl: float
    def __init__(self, name: _Optional[str] = ..., refs: _Optional[int] = ..., ttl: _Optional[float] = ...) -> None: ...

class ListHoldersResponse(_message.Message):
    __slots__ = ("holders",)
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    holders: _containers.RepeatedCompositeFieldContainer[ObjectHolder]
    def __init__(self, holders: _Optional[_Iterable[_Union[ObjectHolder, _Mapping[str, _Any]]]] = ...) -> None: ...

class PinObjectRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class UnpinObjectRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class DeleteObjectRequest(_message.Message):
    __slots__ = ("key", "expect")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECT_FIELD_NUMBER: _ClassVar[int]
    key: str
    expect: ObjectExpectation
    def __init__(self, key: _Optional[str] = ..., expect: _Optional[_Union[ObjectExpectation, _Mapping[str, _Any]]] = ...) -> None: ...

class DeleteObjectResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchObjectsRequest(_message.Message):
    __slots__ = ("prefix", "start_revision")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    START_REVISION_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    start_revision: int
    def __init__(self, prefix: _Optional[str] = ..., start_revision: _Optional[int] = ...) -> None: ...

class ObjectChange(_message.Message):
    __slots__ = ("key", "now")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    key: str
    now: ObjectStat
    def __init__(self, key: _Optional[str] = ..., now: _Optional[_Union[ObjectStat, _Mapping[str, _Any]]] = ...) -> None: ...

class ObjectChanges(_message.Message):
    __slots__ = ("revision", "changes")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    revision: int
    changes: _containers.RepeatedCompositeFieldContainer[ObjectChange]
    def __init__(self, revision: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[ObjectChange, _Mapping[str, _Any]]]] = ...) -> None: ...

class GetObjectUsageRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ObjectUsage(_message.Message):
    __slots__ = ("objects", "bytes", "limit_bytes")
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    objects: int
    bytes: int
    limit_bytes: int
    def __init__(self, objects: _Optional[int] = ..., bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ...) -> None: ...
