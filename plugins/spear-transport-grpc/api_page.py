"""``docs/api.md``: the public services, as their protos describe them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2

PUBLIC = "spear/v1/"
INTERNAL = {"spear/v1/channel.proto"}
ORDER = ("function", "task", "artifact", "object", "instance", "node", "log", "common")
INTRODUCTION = """\
# The API

<!-- Made by plugins/spear-transport-grpc/generate.py from the protos there; do not edit. -->

What a SPEAR node answers over gRPC, service by service. [grpc.md](grpc.md) says how to open the
door and what each error means. The files are in
[plugins/spear-transport-grpc/proto](../plugins/spear-transport-grpc/proto/spear/v1/function.proto);
a running node describes itself by server reflection too, and answers the standard health check.
"""

Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    Field.TYPE_DOUBLE: "double",
    Field.TYPE_INT64: "int64",
    Field.TYPE_INT32: "int32",
    Field.TYPE_UINT32: "uint32",
    Field.TYPE_UINT64: "uint64",
    Field.TYPE_BOOL: "bool",
    Field.TYPE_STRING: "string",
    Field.TYPE_BYTES: "bytes",
}


class Comments:
    """What is written above each thing in a file."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._name = file.name
        self._text = {
            tuple(place.path): " ".join(place.leading_comments.split())
            for place in file.source_code_info.location
            if place.leading_comments.strip()
        }

    def of(self, *path: int) -> str:
        """The comment at that path. **Raises** :exc:`SystemExit` when there is none."""
        if path not in self._text:
            raise SystemExit(f"{self._name}: nothing is written above the element at {path}")
        return self._text[path]


def _type(
    field: descriptor_pb2.FieldDescriptorProto, message: descriptor_pb2.DescriptorProto
) -> str:
    if field.type in _SCALARS:
        name = _SCALARS[field.type]
    else:
        name = field.type_name.rpartition(".")[2]
        for entry in message.nested_type:
            if entry.name == name and entry.options.map_entry:
                key, value = entry.field
                return f"map of {_type(key, entry)} to {_type(value, entry)}"
        name = f"[{name}](#{name.lower()})"
    if field.label == Field.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _message(
    message: descriptor_pb2.DescriptorProto, comments: Comments, index: int
) -> Iterator[str]:
    yield f"### {message.name}\n\n{comments.of(4, index)}\n"
    if message.field:
        yield "| Field | Type | Meaning |\n|---|---|---|"
        for number, field in enumerate(message.field):
            text = comments.of(4, index, 2, number).replace("|", "\\|")
            if field.HasField("oneof_index") and not field.proto3_optional:
                text = f"({message.oneof_decl[field.oneof_index].name}) {text}"
            yield f"| `{field.name}` = {field.number} | {_type(field, message)} | {text} |"
        yield ""


def _enum(
    enum: descriptor_pb2.EnumDescriptorProto, comments: Comments, index: int
) -> Iterator[str]:
    yield f"### {enum.name}\n\n{comments.of(5, index)}\n\n| Value | Meaning |\n|---|---|"
    for number, value in enumerate(enum.value):
        yield f"| `{value.name}` = {value.number} | {comments.of(5, index, 2, number)} |"
    yield ""


def _service(
    service: descriptor_pb2.ServiceDescriptorProto, comments: Comments, index: int
) -> Iterator[str]:
    yield f"### {service.name}\n\n{comments.of(6, index)}\n\n| Method | Takes → gives | Meaning |"
    yield "|---|---|---|"
    for number, method in enumerate(service.method):
        names = []
        for name, streams in (
            (method.input_type, method.client_streaming),
            (method.output_type, method.server_streaming),
        ):
            short = name.rpartition(".")[2]
            names.append(f"{'stream of ' if streams else ''}[{short}](#{short.lower()})")
        text = comments.of(6, index, 2, number)
        yield f"| `{method.name}` | {' → '.join(names)} | {text} |"
    yield ""


def page(proto: Path, descriptors: bytes) -> str:
    """The page. **Raises** :exc:`SystemExit` for anything that is not documented."""
    files = {f.name: f for f in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file}
    lines = [INTRODUCTION]
    for name in ORDER:
        file = files[f"{PUBLIC}{name}.proto"]
        comments = Comments(file)
        lines.append(f"## {name}.proto\n\n{comments.of(12)}\n")
        for index, service in enumerate(file.service):
            lines += _service(service, comments, index)
        for index, message in enumerate(file.message_type):
            lines += _message(message, comments, index)
        for index, enum in enumerate(file.enum_type):
            lines += _enum(enum, comments, index)
    missing = {n for n in files if n.startswith(PUBLIC)} - INTERNAL
    missing -= {f"{PUBLIC}{name}.proto" for name in ORDER}
    if missing:
        raise SystemExit(f"not on the page: {sorted(missing)}")
    return "\n".join(lines)
