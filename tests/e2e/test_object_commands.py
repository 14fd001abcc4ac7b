"""What ``spear objects`` makes of arguments that nobody should give, and of names that nobody
should have chosen."""

from __future__ import annotations

from typing import Any

import pytest

ODD = "a\nfake  1 B\u202etxt\x1b[31m"
SHOWN = r"a\nfake  1 B\u202etxt\x1b[31m"


@pytest.fixture
def node(home: Any) -> Any:
    home.node()
    return home


def test_a_listing_has_one_line_for_each_object_whatever_its_name(node: Any) -> None:
    assert node.spear("objects", "put", ODD, "-", stdin=b"x").out == f"{SHOWN} is version 1\n"
    _, only = node.spear("objects", "ls", "a").out.splitlines()
    assert only.split("  ")[:2] == ["a\\nfake", "1 B\\u202etxt\\x1b[31m"]
    assert node.spear("objects", "stat", ODD).out.splitlines()[0] == f"{'key':<14} {SHOWN}"
    node.spear("objects", "put", "b it's", "-", stdin=b"x")
    node.spear("objects", "put", "b more", "-", stdin=b"x")
    more = node.spear("objects", "ls", "b", "--limit", "1").err
    assert more == """there are more: --after 'b it'"'"'s' goes on, --limit shows more\n"""


def test_what_is_not_there_does_not_keep_the_others_from_being_deleted(node: Any) -> None:
    for key in ("c/1", "c/2"):
        node.spear("objects", "put", key, "-", stdin=b"x")
    told = node.spear("objects", "rm", "c/1", "c/none", "c/2")
    assert (told.status, told.out) == (3, "deleted c/1\ndeleted c/2\n")
    assert told.err == "error: there is no object 'c/none'\n"


ARGUMENTS = [
    (["put", "d", "-", "--expect", "9" * 20], "write a version"),
    (["rm", "d", "--expect", "9" * 20], "write a version"),
    (["get", "d", "--version", "9" * 20], "is not in the range"),
    (["get", "d", "-o", ""], "is a directory"),
    (["get", "d", "-o", "/dev/null"], "/dev/null is no regular file; leave --output out"),
    (["get", "d", "--resume"], "--resume needs --output"),
    (["get", "d", "-o", "-", "--resume"], "--resume needs --output"),
    (["put", "/", "-"], "1 to 400 bytes"),
    (["put", "//d", "-"], "without a '/' before it: 'd'"),
]


def test_arguments_that_make_no_sense(node: Any) -> None:
    node.spear("objects", "put", "d", "-", stdin=b"x")
    for arguments, why in ARGUMENTS:
        told = node.spear("objects", *arguments, stdin=b"y")
        assert (told.status, why in told.err) == (2, True), told.err
    assert node.spear("objects", "get", "d", "-o", "-").out == "x"
    told = node.spear("invoke", "f", "--input-object", "")
    assert (told.status, "an object's key has 1 to 400 bytes" in told.err) == (2, True), told.err


def test_a_checksum_may_be_written_in_capitals(node: Any) -> None:
    node.spear("objects", "put", "e", "-", stdin=b"x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    told = node.spear("objects", "put", "e", "-", "--expect", digest.upper(), stdin=b"y")
    assert told.out == "e is version 2\n", told.err
