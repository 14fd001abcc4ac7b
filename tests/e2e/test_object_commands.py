"""What ``spear objects`` makes of arguments that nobody should give, and of names that nobody
should have chosen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SPEAR = str(Path(sys.executable).with_name("spear"))

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


def test_streams_that_whoever_started_it_has_closed(node: Any) -> None:
    """As a program that is started without a terminal may have it."""

    def told(command: str) -> tuple[int, bytes]:
        done = subprocess.run(
            ["sh", "-c", f"{SPEAR} objects {command}"],
            cwd=node.folder,
            env=node.environ(),
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    assert told("put g /proc/self/status 2>&-") == (0, b"g is version 1\n")
    assert told("ls >&-") == (7, b"error: standard output is closed\n")
    assert told("get g >&-") == (7, b"error: standard output is closed\n")
    assert told("get g -o copy >&- 2>&-") == (0, b"")
    assert (node.folder / "copy").read_bytes().startswith(b"Name:")


def test_a_group_without_a_command_says_which_there_are(node: Any) -> None:
    told = node.spear("objects")
    assert told.status in (0, 2)
    assert (told.out + told.err).startswith("Usage: spear objects")
