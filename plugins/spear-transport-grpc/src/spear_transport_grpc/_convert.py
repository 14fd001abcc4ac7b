"""SPEAR's values as messages of the protos, and back.

A value's fields have their names in the proto. What a message leaves at its zero is the value's
own default; where zero means something, the proto's field is ``optional``.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import attrs
from google.protobuf.message import Message

from spear_core.api import (
    ArtifactDetails,
    ArtifactInfo,
    ArtifactMetrics,
    ArtifactSettings,
    BackupReport,
    ConfigReload,
    ErrorInfo,
    ExecutionInfo,
    ExecutionMetrics,
    ExecutionUsage,
    Histogram,
    InstanceInfo,
    InvokeRequest,
    Limits,
    LogChunk,
    LogEntry,
    NodeMetrics,
    NodeStatus,
    ObjectChange,
    ObjectChanges,
    ObjectGrants,
    ObjectHolder,
    ObjectPage,
    ObjectStat,
    PluginInfo,
    PoolSettings,
    Resources,
    RetryPolicy,
    RuntimeInfo,
    StoreUsage,
    TaskInfo,
    TaskResult,
)
from spear_core.errors import InvalidRequestError
from spear_transport_grpc._protos.spear.v1 import (
    artifact_pb2,
    common_pb2,
    function_pb2,
    instance_pb2,
    log_pb2,
    node_pb2,
    object_pb2,
)

__all__ = ["MESSAGES", "Converter", "converter"]

V = TypeVar("V")
Step = Callable[[Any], Any]

MESSAGES: Mapping[type[Any], type[Message]] = {
    ArtifactDetails: artifact_pb2.ArtifactDetails,
    ArtifactInfo: artifact_pb2.Artifact,
    ArtifactMetrics: node_pb2.ArtifactMetrics,
    ArtifactSettings: artifact_pb2.ArtifactSettings,
    BackupReport: node_pb2.BackupReport,
    ConfigReload: node_pb2.ReloadConfigResponse,
    ErrorInfo: common_pb2.Error,
    ExecutionInfo: common_pb2.Execution,
    ExecutionMetrics: node_pb2.ExecutionMetrics,
    ExecutionUsage: common_pb2.Usage,
    Histogram: node_pb2.Histogram,
    InstanceInfo: instance_pb2.Instance,
    InvokeRequest: function_pb2.InvokeFunctionRequest,
    Limits: artifact_pb2.Limits,
    LogChunk: log_pb2.LogChunk,
    LogEntry: log_pb2.LogEntry,
    NodeMetrics: node_pb2.NodeMetrics,
    NodeStatus: node_pb2.NodeStatus,
    ObjectChange: object_pb2.ObjectChange,
    ObjectChanges: object_pb2.ObjectChanges,
    ObjectGrants: artifact_pb2.ObjectGrants,
    ObjectHolder: object_pb2.ObjectHolder,
    ObjectPage: object_pb2.ListObjectsResponse,
    ObjectStat: object_pb2.ObjectStat,
    PluginInfo: node_pb2.Plugin,
    PoolSettings: artifact_pb2.PoolSettings,
    Resources: artifact_pb2.Resources,
    RetryPolicy: artifact_pb2.RetryPolicy,
    RuntimeInfo: node_pb2.Runtime,
    StoreUsage: object_pb2.ObjectUsage,
    TaskInfo: common_pb2.Task,
    TaskResult: common_pb2.ExecutionResult,
}
_BY_HAND = {(TaskInfo, "result")}
"""Fields whose message says more than the value (``_task.py``)."""


@attrs.frozen
class _Field:
    name: str
    encode: Step | None
    """``None``: as it is."""
    decode: Step | None
    presence: bool
    may_be_none: bool
    """Not said means ``None``, and there is no default."""
    default: object
    """What the value has when it is not said; ``NOTHING`` when it must be."""


class Converter(Generic[V]):
    """One class of values and its message."""

    def __init__(self, cls: type[V]) -> None:
        self._cls = cls
        self._message = MESSAGES[cls]
        hints = typing.get_type_hints(cls)
        fields = attrs.fields(cls)  # type: ignore[arg-type]  # every key of MESSAGES is attrs
        self._fields = tuple(
            self._field(field, hints[field.name])
            for field in fields
            if (cls, field.name) not in _BY_HAND
        )
        # as plain tuples: every call passes here twice
        self._encoding = [(f.name, f.encode, f.presence, f.default) for f in self._fields]

    def encode(self, value: V, **more: Any) -> Any:
        """The value as a message, with ``more`` of its fields."""
        for name, encode, presence, default in self._encoding:
            item = getattr(value, name)
            if item is None or item is default or (item == default and not presence):
                continue
            more[name] = item if encode is None else encode(item)
        return self._message(**more)

    def decode(self, message: Any, **more: Any) -> V:
        """The message as a value; ``more`` are fields that are known already.

        **Raises** :exc:`~spear_core.errors.InvalidRequestError` for what no value can be.
        """
        try:
            return self._cls(**self.fields(message), **more)
        except (ValueError, TypeError) as error:
            raise InvalidRequestError(f"{self._message.__name__}: {error}") from error

    def fields(self, message: Any) -> dict[str, Any]:
        """What the message says, by the value's names."""
        found: dict[str, Any] = {}
        for field in self._fields:
            name = field.name
            if field.presence:
                if not message.HasField(name):
                    if field.may_be_none:
                        found[name] = None
                    continue
                item = getattr(message, name)
            else:
                item = getattr(message, name)
                if not item and field.default is not attrs.NOTHING:
                    continue
            found[name] = item if field.decode is None else field.decode(item)
        return found

    def _field(self, field: attrs.Attribute[Any], hint: Any) -> _Field:
        descriptor = self._message.DESCRIPTOR.fields_by_name[field.name]
        encode, decode = _steps(_not_none(hint), descriptor)
        default: Any = field.default
        if hasattr(default, "factory"):
            default = default.factory()
        may_be_none = default is attrs.NOTHING and _not_none(hint) is not hint
        return _Field(field.name, encode, decode, descriptor.has_presence, may_be_none, default)


_converters: dict[type[Any], Converter[Any]] = {}


def converter(cls: type[V]) -> Converter[V]:
    """The converter of a class of values."""
    known = _converters.get(cls)
    if known is None:
        known = _converters[cls] = Converter(cls)
    return known


def _not_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    return hint


def _steps(hint: Any, descriptor: Any) -> tuple[Step | None, Step | None]:
    """How one value of this type becomes part of a message, and back."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and typing.get_origin(arguments[0]) is tuple:
        return dict, lambda found: tuple(sorted(found.items()))
    if origin is tuple:
        encode, decode = _steps(arguments[0], descriptor)
        if encode is None or decode is None:
            return list, tuple
        return (lambda items: [*map(encode, items)], lambda found: tuple(map(decode, found)))
    if origin is not None and issubclass(origin, Mapping):
        return dict, dict
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_steps(hint, descriptor.enum_type)
    if hint in MESSAGES:
        nested = converter(hint)
        return nested.encode, nested.decode
    if hint is float:
        return None, float
    return None, None


def _enum_steps(cls: type[enum.Enum], descriptor: Any) -> tuple[Step, Step]:
    numbers = {
        member: value.number
        for member in cls
        for value in descriptor.values
        if value.name.endswith(f"_{member.name}")
    }
    members = {number: member for member, number in numbers.items()}

    def decode(number: int) -> enum.Enum:
        if number not in members:
            known = ", ".join(v.name for v in descriptor.values if v.number in members)
            raise InvalidRequestError(
                f"{descriptor.name}: there is no value {number}; there are {known}"
            )
        return members[number]

    return numbers.__getitem__, decode
