"""Turns input bytes into what a parameter's annotation asks for."""

from __future__ import annotations

import sys

from spear_sdk._errors import BadFunctionError, InvalidInputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    Decoder: TypeAlias = "Callable[[bytes | bytearray | memoryview, str], object]"
    Shaper: TypeAlias = "Callable[[Any, str], object]"

__all__ = ["decoder_for"]


class _MismatchError(Exception):
    """A JSON value is not of the wanted shape: where, what was wanted, what came."""


def decoder_for(annotation: Any, parameter: str) -> Decoder:
    """A function (payload, content type) → argument for a parameter of this type.

    The decoder raises InvalidInputError that names the parameter and the type.

    Raises: BadFunctionError.
    """
    if annotation in _RAW:
        return _raw_decoder(annotation, parameter)
    if _is_open(annotation):
        return lambda payload, content_type: _by_content(payload, content_type, parameter)
    members = _union_members(annotation)
    if members is not None and type(None) in members:
        rest = [member for member in members if member is not type(None)]
        if len(rest) == 1:
            return _optional_decoder(rest[0], parameter)
    return _json_decoder(annotation, parameter)


def _raw_decoder(annotation: Any, parameter: str) -> Decoder:
    def decode(payload: bytes | bytearray | memoryview, content_type: str) -> object:
        if annotation is str:
            return _text(payload, parameter)
        return payload if type(payload) is annotation else annotation(payload)

    return decode


def _optional_decoder(annotation: Any, parameter: str) -> Decoder:
    inner = decoder_for(annotation, parameter)
    raw = annotation in _RAW

    def decode(payload: bytes | bytearray | memoryview, content_type: str) -> object:
        if not payload or (not raw and bytes(payload).strip() == b"null"):
            return None
        return inner(payload, content_type)

    return decode


def _json_decoder(annotation: Any, parameter: str) -> Decoder:
    shape = _shaper(annotation)
    wanted = _name(annotation)

    def decode(payload: bytes | bytearray | memoryview, content_type: str) -> object:
        value = _parse(payload, f"parameter {parameter!r} takes {wanted} as JSON")
        try:
            return shape(value, "")
        except _MismatchError as exc:
            path, problem = exc.args
            at = f" at {path}" if path else ""
            raise InvalidInputError(
                f"parameter {parameter!r} takes {wanted}: the input{at} {problem}"
            ) from None

    return decode


def _text(payload: bytes | bytearray | memoryview, parameter: str) -> str:
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidInputError(
            f"parameter {parameter!r} takes str: the input isn't UTF-8 text "
            f"({exc.reason} at byte {exc.start})"
        ) from None


def _by_content(
    payload: bytes | bytearray | memoryview, content_type: str, parameter: str
) -> object:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return _parse(payload, f"parameter {parameter!r}: the content type is {kind}")
    if kind.startswith("text/"):
        return _text(payload, parameter)
    return payload if type(payload) is bytes else bytes(payload)


def _parse(payload: bytes | bytearray | memoryview, context: str) -> object:
    import json

    if not payload:
        raise InvalidInputError(f"{context}, and the input is empty")
    try:
        return json.loads(bytes(payload))
    except UnicodeDecodeError:
        raise InvalidInputError(f"{context}, and the input isn't UTF-8 text") from None
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"{context}, and the input isn't JSON: {exc}") from None


# From JSON values to types. A shaper is called with the value and its path within the input.


def _shaper(annotation: Any) -> Shaper:
    if _is_open(annotation):
        return lambda value, path: value
    if annotation is None or annotation is type(None):
        return _exactly(type(None), "null")
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    supertype = getattr(annotation, "__supertype__", None)  # typing.NewType
    if supertype is not None:
        return _shaper(supertype)
    members = _union_members(annotation)
    if members is not None:
        return _union_shaper(annotation, members)
    origin = getattr(annotation, "__origin__", None)
    arguments = getattr(annotation, "__args__", ())
    if origin is not None and hasattr(annotation, "__metadata__"):  # Annotated
        return _shaper(origin)
    container = origin or annotation
    if _is_literal(container):
        return _literal_shaper(arguments)
    if isinstance(container, type):
        for find in (_collection_shaper, _class_shaper):
            shaper = find(container, arguments)
            if shaper is not None:
                return shaper
    raise BadFunctionError(f"no input can be made into {_name(annotation)}")


def _exactly(cls: type, wanted: str) -> Shaper:
    def shape(value: Any, path: str) -> object:
        if type(value) is not cls:
            raise _MismatchError(path, f"must be {wanted}, not {_kind(value)}")
        return value

    return shape


def _float(value: Any, path: str) -> object:
    if type(value) not in (int, float):
        raise _MismatchError(path, f"must be a number, not {_kind(value)}")
    return float(value)


def _union_shaper(annotation: Any, members: tuple[Any, ...]) -> Shaper:
    shapers = [_shaper(member) for member in members]
    plain = [member for member in members if member is not type(None)]

    def shape(value: Any, path: str) -> object:
        problems = []
        for shaper in shapers:
            try:
                return shaper(value, path)
            except _MismatchError as exc:
                problems.append(exc)
        if len(plain) == 1:  # X | None: what is wrong with it as an X says more
            raise problems[members.index(plain[0])]
        raise _MismatchError(path, f"must be {_name(annotation)}, not {_kind(value)}")

    return shape


def _literal_shaper(values: tuple[Any, ...]) -> Shaper:
    listed = ", ".join(repr(value) for value in values)

    def shape(value: Any, path: str) -> object:
        for choice in values:
            if type(choice) is type(value) and choice == value:
                return choice
        raise _MismatchError(path, f"must be one of {listed}, not {value!r}")

    return shape


def _collection_shaper(cls: type, arguments: tuple[Any, ...]) -> Shaper | None:
    from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence

    if cls in (dict, Mapping, MutableMapping):
        if arguments and arguments[0] is not str:
            raise BadFunctionError(
                f"JSON has only text as keys, so no dict with {_name(arguments[0])} keys"
            )
        return _dict_shaper(_shaper(arguments[1]) if arguments else None)
    if cls in (list, Sequence, MutableSequence):
        return _list_shaper(list, _shaper(arguments[0]) if arguments else None)
    if cls in (set, frozenset):
        return _list_shaper(cls, _shaper(arguments[0]) if arguments else None)
    if cls is tuple:
        if not arguments or arguments[-1] is Ellipsis:
            return _list_shaper(tuple, _shaper(arguments[0]) if arguments else None)
        return _tuple_shaper([_shaper(argument) for argument in arguments])
    return None


def _dict_shaper(inner: Shaper | None) -> Shaper:
    def shape(value: Any, path: str) -> object:
        if type(value) is not dict:
            raise _MismatchError(path, f"must be an object, not {_kind(value)}")
        if inner is None:
            return value
        return {key: inner(item, f"{path}.{key}") for key, item in value.items()}

    return shape


def _list_shaper(make: Callable[[list[Any]], object], inner: Shaper | None) -> Shaper:
    def shape(value: Any, path: str) -> object:
        if type(value) is not list:
            raise _MismatchError(path, f"must be an array, not {_kind(value)}")
        if inner is not None:
            value = [inner(item, f"{path}[{at}]") for at, item in enumerate(value)]
        try:
            return make(value)
        except TypeError as exc:
            raise _MismatchError(path, f"cannot be a set: {exc}") from None

    return shape


def _tuple_shaper(inner: list[Shaper]) -> Shaper:
    def shape(value: Any, path: str) -> object:
        if type(value) is not list or len(value) != len(inner):
            raise _MismatchError(path, f"must be an array of {len(inner)}, not {_kind(value)}")
        return tuple(
            shaper(item, f"{path}[{at}]")
            for at, (shaper, item) in enumerate(zip(inner, value, strict=True))
        )

    return shape


def _class_shaper(cls: Any, arguments: tuple[Any, ...]) -> Shaper | None:
    if hasattr(cls, "__dataclass_fields__") and not hasattr(cls, "model_validate"):
        import dataclasses

        missing = dataclasses.MISSING
        return _fields_shaper(
            cls,
            {
                field.name: (
                    field.name,
                    field.default is missing and field.default_factory is missing,
                )
                for field in dataclasses.fields(cls)
                if field.init
            },
        )
    if hasattr(cls, "__attrs_attrs__"):
        nothing = sys.modules["attr"].NOTHING
        return _fields_shaper(
            cls,
            {
                field.alias or field.name.lstrip("_"): (field.name, field.default is nothing)
                for field in cls.__attrs_attrs__
                if field.init
            },
        )
    if hasattr(cls, "__required_keys__"):  # TypedDict
        names = sorted(cls.__required_keys__ | cls.__optional_keys__)
        return _fields_shaper(cls, {name: (name, name in cls.__required_keys__) for name in names})
    enum = sys.modules.get("enum")
    if enum is not None and issubclass(cls, enum.Enum):
        return _enum_shaper(cls)
    validate = getattr(cls, "model_validate", None)  # pydantic, without importing it
    return _model_shaper(validate) if validate is not None else None


def _fields_shaper(cls: Any, fields: dict[str, tuple[str, bool]]) -> Shaper:
    """For a class of named fields: JSON name → (attribute, whether it is required)."""
    shapers: dict[str, Shaper] = {}

    def prepare() -> None:  # at first use, so that a class may contain itself
        from typing import NotRequired, Required, get_type_hints

        try:
            hints = get_type_hints(cls, include_extras=True)
        except NameError as exc:
            raise BadFunctionError(f"a field of {cls.__name__}: {exc}") from None
        for name, (attribute, _) in fields.items():
            hint = hints.get(attribute, object)
            qualifier = getattr(hint, "__origin__", None)
            if qualifier is NotRequired or qualifier is Required:
                # of a TypedDict whose own account is wrong when its annotations are text
                fields[name] = attribute, qualifier is Required
                hint = hint.__args__[0]
            shapers[name] = _shaper(hint)

    def shape(value: Any, path: str) -> object:
        if not shapers:
            prepare()
        if type(value) is not dict:
            raise _MismatchError(path, f"must be an object, not {_kind(value)}")
        for name in value:
            if name not in fields:
                known = ", ".join(fields) or "none"
                raise _MismatchError(path, f"has an unknown field {name!r} (there are: {known})")
        for name, (_, required) in fields.items():
            if required and name not in value:
                raise _MismatchError(path, f"lacks the field {name!r}")
        arguments = {name: shapers[name](item, f"{path}.{name}") for name, item in value.items()}
        try:
            return cls(**arguments)
        except (TypeError, ValueError) as exc:  # a validator's or __post_init__'s word
            raise _MismatchError(path, f"is no {cls.__name__}: {exc}") from None

    return shape


def _enum_shaper(cls: Any) -> Shaper:
    def shape(value: Any, path: str) -> object:
        try:
            return cls(value)
        except ValueError:
            listed = ", ".join(repr(member.value) for member in cls)
            raise _MismatchError(path, f"must be one of {listed}, not {value!r}") from None

    return shape


def _model_shaper(validate: Callable[[Any], object]) -> Shaper:
    def shape(value: Any, path: str) -> object:
        try:
            return validate(value)
        except ValueError as exc:
            raise _MismatchError(path, f"is refused: {exc}") from None

    return shape


def _is_open(annotation: Any) -> bool:
    typing = sys.modules.get("typing")
    return annotation is object or (typing is not None and annotation is typing.Any)


def _is_literal(annotation: Any) -> bool:
    typing = sys.modules.get("typing")
    return typing is not None and annotation is typing.Literal


def _union_members(annotation: Any) -> tuple[Any, ...] | None:
    typing = sys.modules.get("typing")
    is_union = type(annotation) is type(int | None) or (
        typing is not None and getattr(annotation, "__origin__", None) is typing.Union
    )
    return tuple(annotation.__args__) if is_union else None


def _name(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not getattr(annotation, "__args__", ()):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


_KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_SCALARS: dict[Any, Shaper] = {
    bool: _exactly(bool, "true or false"),
    int: _exactly(int, "an integer"),
    float: _float,
    str: _exactly(str, "a string"),
}
_RAW = (bytes, bytearray, memoryview, str)
