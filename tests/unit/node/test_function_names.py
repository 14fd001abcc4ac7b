"""How artifacts and functions are called."""

from __future__ import annotations

import pytest

from spear_core.errors import InvalidRequestError
from spear_core.node._function_names import check_artifact_name, parse_artifact, parse_function


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("f", ("f", None, "")),
        ("f:main", ("f", None, "main")),
        ("f@3", ("f", 3, "")),
        ("f@latest:main", ("f", None, "main")),
        ("a-b.c@12:x:y", ("a-b.c", 12, "x:y")),
    ],
)
def test_a_function_names_artifact_version_and_entry(text: str, parsed: object) -> None:
    assert parse_function(text) == parsed


@pytest.mark.parametrize("text", ["", ":main", "f@", "f@x", "f:", "@1"])
def test_a_malformed_function_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"name\[@version\]"):
        parse_function(text)


def test_an_artifact_has_no_entry() -> None:
    assert parse_artifact("f@3") == ("f", 3)
    assert parse_artifact("f") == parse_artifact("f@latest") == ("f", None)
    with pytest.raises(InvalidRequestError, match=r"^here: 'f:main' is not of the form name\[@"):
        parse_artifact("f:main", what="here: ")


@pytest.mark.parametrize("name", ["a", "9", "A-b_c.d", "x" * 100])
def test_names_that_can_be_deployed(name: str) -> None:
    check_artifact_name(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "a/b", "a b", "a:b", "a@1", "ä", "x" * 101])
def test_names_that_cannot(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="use 1 to 100 letters"):
        check_artifact_name(name)
