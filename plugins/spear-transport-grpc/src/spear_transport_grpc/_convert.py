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
Step = Callable[..., Any]

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


class _Shape(enum.Enum):
    """How a field takes what it is given."""

    ONE = enum.auto()
    MESSAGE = enum.auto()
    MANY = enum.auto()
    MESSAGES = enum.auto()
    MAPPING = enum.auto()


@attrs.frozen
class _Field:
    name: str
    shape: _Shape
    encode: Step | None
    """Of one item; ``None``: as it is. Of a message it fills one: ``encode(message, value)``."""
    decode: Step | None
    presence: bool
    may_be_none: bool
    """Not said means ``None``, and there is no default."""
    default: object
    """What the value has when it is not said; ``NOTHING`` when it must be."""


class Converter(Generic[V]):
    """One class of values and its message.

    Every call passes here twice, so what is known of the class beforehand is compiled into two
    functions, one for each way, as attrs does for ``__init__``.
    """

    def __init__(self, cls: type[V]) -> None:
        self._cls = cls
        self._message = MESSAGES[cls]
        hints = typing.get_type_hints(cls)
        fields = tuple(
            self._field(field, hints[field.name])
            for field in attrs.fields(cls)  # type: ignore[arg-type]  # every key of MESSAGES is attrs
            if (cls, field.name) not in _BY_HAND
        )
        self.fill: Callable[[Any, V], None] = _compiled(cls, "fill", _fill_lines, fields)
        """``fill(message, value)``: say in the message what the value is."""
        self.fields: Callable[[Any], dict[str, Any]] = _compiled(
            cls, "fields", _fields_lines, fields
        )
        """What a message says, by the value's names."""

    def encode(self, value: V, **more: Any) -> Any:
        """The value as a message, with ``more`` of its fields."""
        message = self._message(**more)
        self.fill(message, value)
        return message

    def decode(self, message: Any, **more: Any) -> V:
        """The message as a value; ``more`` are fields that are known already.

        **Raises** :exc:`~spear_core.errors.InvalidRequestError` for what no value can be.
        """
        try:
            return self._cls(**self.fields(message), **more)
        except (ValueError, TypeError) as error:
            raise InvalidRequestError(f"{self._message.__name__}: {error}") from error

    def _field(self, field: attrs.Attribute[Any], hint: Any) -> _Field:
        descriptor = self._message.DESCRIPTOR.fields_by_name[field.name]
        shape, encode, decode = _steps(_not_none(hint), descriptor)
        default: Any = field.default
        if hasattr(default, "factory"):
            default = default.factory()
        may_be_none = default is attrs.NOTHING and _not_none(hint) is not hint
        presence = descriptor.has_presence
        return _Field(field.name, shape, encode, decode, presence, may_be_none, default)


def _compiled(
    cls: type[Any],
    name: str,
    lines: Callable[[int, _Field], list[str]],
    fields: tuple[_Field, ...],
) -> Callable[..., Any]:
    """A function of these lines, in which ``encode3`` is the third field's, and so on."""
    source = [f"def {name}(message, value=None):", "    found = {}"]
    names: dict[str, Any] = {}
    for index, field in enumerate(fields):
        names[f"encode{index}"], names[f"decode{index}"] = field.encode, field.decode
        names[f"default{index}"] = field.default
        source += [f"    {line}" for line in lines(index, field)]
    source.append("    return found")
    exec(compile("\n".join(source), f"<{name} of {cls.__name__}>", "exec"), names)
    compiled: Callable[..., Any] = names[name]
    return compiled


def _fill_lines(index: int, field: _Field) -> list[str]:
    place, encode = f"message.{field.name}", f"encode{index}"
    one = "item" if field.encode is None else f"{encode}(item)"
    each = "item" if field.encode is None else f"[{encode}(each) for each in item]"
    steps = {
        _Shape.ONE: [f"{place} = {one}"],
        _Shape.MESSAGE: [f"{place}.SetInParent()", f"{encode}({place}, item)"],
        _Shape.MANY: [f"{place}.extend({each})"],
        _Shape.MESSAGES: ["for each in item:", f"    {encode}({place}.add(), each)"],
        _Shape.MAPPING: [f"{place}.update(item)"],
    }[field.shape]
    test = f"item is not None and item is not default{index}"
    if not field.presence:
        test += f" and item != default{index}"
    return [f"item = value.{field.name}", f"if {test}:", *[f"    {step}" for step in steps]]


def _fields_lines(index: int, field: _Field) -> list[str]:
    item, key = f"message.{field.name}", f"found[{field.name!r}]"
    found = item if field.decode is None else f"decode{index}({item})"
    if field.presence:
        lines = [f"if message.HasField({field.name!r}):", f"    {key} = {found}"]
        if field.may_be_none:
            lines += ["else:", f"    {key} = None"]
        return lines
    if field.default is attrs.NOTHING:
        return [f"{key} = {found}"]
    return [f"if {item}:", f"    {key} = {found}"]


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


def _steps(hint: Any, descriptor: Any) -> tuple[_Shape, Step | None, Step | None]:
    """How one value of this type becomes part of a message, and back."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and typing.get_origin(arguments[0]) is tuple:
        return _Shape.MAPPING, None, lambda found: tuple(sorted(found.items()))
    if origin is tuple:
        shape, encode, decode = _steps(arguments[0], descriptor)
        many = _Shape.MESSAGES if shape is _Shape.MESSAGE else _Shape.MANY
        if decode is None:
            return many, encode, tuple
        return many, encode, lambda found: tuple(map(decode, found))
    if origin is not None and issubclass(origin, Mapping):
        return _Shape.MAPPING, None, dict
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return (_Shape.ONE, *_enum_steps(hint, descriptor.enum_type))
    if hint in MESSAGES:
        nested = converter(hint)
        return _Shape.MESSAGE, nested.fill, nested.decode
    return _Shape.ONE, None, float if hint is float else None


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
