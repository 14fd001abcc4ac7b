"""From input bytes to arguments, and from what is returned to output bytes."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict, Union

import attrs
import pytest

from spear_sdk import FunctionError, InvalidInputError
from spear_sdk._convert import decoder_for
from spear_sdk._errors import BadFunctionError
from spear_sdk._output import encode_output


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
    hidden: int = dataclasses.field(default=7, init=False)


@dataclasses.dataclass
class Tree:
    name: str
    children: list[Tree] = dataclasses.field(default_factory=list)


@attrs.frozen(kw_only=True)
class Order:
    item: str
    _count: int = attrs.field(default=1, validator=attrs.validators.gt(0))
    where: Point | None = None


class Film(TypedDict):
    title: str
    year: NotRequired[int]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Model:
    """Looks like pydantic's."""

    def __init__(self, data: Any) -> None:
        self.data = data

    @classmethod
    def model_validate(cls, data: Any) -> Model:
        if data == 13:
            raise ValueError("13 brings bad luck")
        return cls(data)

    def model_dump(self) -> Any:
        return {"data": self.data}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and other.data == self.data

    __hash__ = None  # type: ignore[assignment]


UserId = NewType("UserId", int)


def decode(annotation: Any, payload: bytes, content_type: str = "") -> object:
    return decoder_for(annotation, "p")(payload, content_type)


@pytest.mark.parametrize(
    ("annotation", "payload", "expected"),
    [
        (bytes, b"\x00\xff", b"\x00\xff"),
        (bytearray, b"ab", bytearray(b"ab")),
        (str, "né".encode(), "né"),
        (str, b"", ""),
        (str, b'"quoted"', '"quoted"'),
        (int, b" 42\n", 42),
        (float, b"2", 2.0),
        (float, b"2.5", 2.5),
        (bool, b"true", True),
        (dict, b'{"a": [1]}', {"a": [1]}),
        (list, b"[1, {}]", [1, {}]),
        (dict[str, list[int]], b'{"a": [1]}', {"a": [1]}),
        (Mapping[str, Any], b'{"a": null}', {"a": None}),
        (Sequence[str], b'["a"]', ["a"]),
        (tuple[int, str], b'[1, "a"]', (1, "a")),
        (tuple[int, ...], b"[1, 2, 3]", (1, 2, 3)),
        (set[int], b"[1, 1]", {1}),
        (int | str, b'"a"', "a"),
        (Union[int, list[int]], b"[1]", [1]),  # noqa: UP007
        (Optional[int], b"", None),  # noqa: UP045
        (int | None, b"null", None),
        (int | None, b"5", 5),
        (str | None, b"null", "null"),
        (bytes | None, b"", None),
        (Literal["a", 1], b"1", 1),
        (Annotated[int, "why"], b"1", 1),
        (UserId, b"1", 1),
        (None, b"null", None),
        (Colour, b'"red"', Colour.RED),
        (Film, b'{"title": "M"}', {"title": "M"}),
        (Point, b'{"x": 1}', Point(1)),
        (Point, b'{"x": 1, "y": 2}', Point(1, 2.0)),
        (Tree, b'{"name": "a", "children": [{"name": "b"}]}', Tree("a", [Tree("b")])),
        (Order, b'{"item": "tea"}', Order(item="tea")),
        (
            Order,
            b'{"item": "tea", "count": 2, "where": {"x": 3}}',
            Order(item="tea", count=2, where=Point(3)),
        ),
        (list[Point], b'[{"x": 1}]', [Point(1)]),
        (Model, b"5", Model(5)),
    ],
)
def test_makes_input_into(annotation: Any, payload: bytes, expected: object) -> None:
    value = decode(annotation, payload)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "payload", "message"),
    [
        (str, b"a\xff", "'p' takes str: the input isn't UTF-8 text (invalid start byte at byte 1)"),
        (int, b"", "'p' takes int as JSON, and the input is empty"),
        (int, b"four", "'p' takes int as JSON, and the input isn't JSON: Expecting value"),
        (int, b"\xff", "'p' takes int as JSON, and the input isn't"),
        (int, b"4.5", "'p' takes int: the input must be an integer, not a number with a fraction"),
        (int, b"true", "must be an integer, not a boolean"),
        (float, b'"1"', "must be a number, not a string"),
        (bool, b"1", "must be true or false, not an integer"),
        (dict, b"[]", "'p' takes dict: the input must be an object, not an array"),
        (dict[str, list[int]], b'{"a": [1, "b"]}', "input at .a[1] must be an integer"),
        (int | None, b'"a"', "must be an integer, not a string"),
        (int | str, b"[]", "must be int | str, not an array"),
        (tuple[int, str], b"[1]", "must be an array of 2"),
        (set[Any], b"[[]]", "cannot be a set"),
        (Literal["a", "b"], b'"c"', "must be one of 'a', 'b', not 'c'"),
        (Colour, b'"green"', "must be one of 'red', 'blue', not 'green'"),
        (Film, b'{"year": "x", "title": "M"}', "at .year must be an integer"),
        (Point, b"{}", "'p' takes Point: the input lacks the field 'x'"),
        (Point, b'{"x": 1, "z": 1}', "has an unknown field 'z' (there are: x, y)"),
        (Tree, b'{"name": "a", "children": [{}]}', "at .children[0] lacks the field 'name'"),
        (Order, b'{"item": "a", "count": 0}', "is no Order: '_count' must be > 0"),
        (Order, b'{"item": "a", "where": 1}', "at .where must be an object, not an integer"),
        (Model, b"13", "13 brings bad luck"),
        (int, b"[" * 100_000, "isn't JSON"),
    ],
)
def test_refuses_input_naming_parameter_and_place(
    annotation: Any, payload: bytes, message: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        decode(annotation, payload)
    assert message in str(caught.value)
    assert str(caught.value).startswith("parameter 'p'")
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize(
    ("content_type", "payload", "expected"),
    [
        ("application/json", b"[1]", [1]),
        ("application/vnd.x+json; charset=utf-8", b"1", 1),
        ("text/plain; charset=utf-8", b"1", "1"),
        ("application/octet-stream", b"1", b"1"),
        ("", b"1", b"1"),
    ],
)
def test_without_a_type_the_content_type_decides(
    content_type: str, payload: bytes, expected: object
) -> None:
    assert decode(object, payload, content_type) == expected
    assert decode(Any, payload, content_type) == expected


@pytest.mark.parametrize("annotation", [complex, dict[int, str], list[complex], bytes | dict])
def test_a_type_no_input_can_be_made_into(annotation: Any) -> None:
    with pytest.raises(BadFunctionError):
        decoder_for(annotation, "p")


@pytest.mark.parametrize(
    ("value", "output", "content_type"),
    [
        (b"\x00", b"\x00", "application/octet-stream"),
        (bytearray(b"a"), b"a", "application/octet-stream"),
        (memoryview(b"abcd")[::2], b"ac", "application/octet-stream"),
        ("né", "né".encode(), "text/plain; charset=utf-8"),
        (None, b"", "application/octet-stream"),
        (0, b"0", "application/json"),
        (True, b"true", "application/json"),
        ({"a": (1, "né")}, '{"a":[1,"né"]}'.encode(), "application/json"),
        (Point(1), b'{"x":1,"y":0.0,"hidden":7}', "application/json"),
        (
            [Order(item="tea", where=Point(1))],
            b'[{"item":"tea","count":1,"where":{"x":1,"y":0.0,"hidden":7}}]',
            "application/json",
        ),
        ({"c": Colour.RED, "s": {1}}, b'{"c":"red","s":[1]}', "application/json"),
        (datetime.date(2024, 2, 1), b'"2024-02-01"', "application/json"),
        (Model(5), b'{"data":5}', "application/json"),
    ],
)
def test_makes_what_is_returned_into_output(
    value: object, output: bytes, content_type: str
) -> None:
    got, kind = encode_output(value)
    assert (bytes(got), kind) == (output, content_type)


@pytest.mark.parametrize("value", [object(), math.nan, {"a": {1: object()}}, {(): 1}])
def test_what_cannot_be_output_says_so(value: object) -> None:
    with pytest.raises(FunctionError, match=f"returned a {type(value).__name__} that is neither"):
        encode_output(value)


def test_a_loop_in_what_is_returned_says_so() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(FunctionError, match="cannot be JSON"):
        encode_output(loop)
