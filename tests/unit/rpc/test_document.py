"""``docs/wire-format.md`` says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from spear_core.api import Message, MessageFlag, MessageKind, NodeApi, ObjectApi
from spear_core.rpc._payloads import CHUNK
from spear_core.rpc._stream import WINDOW
from spear_core.rpc.codec import encode_head
from spear_core.rpc.framing import encode_header
from spear_core.rpc.session import SessionLimits

TEXT = (Path(__file__).parents[3] / "docs" / "wire-format.md").read_text()


def test_kinds_and_flags_are_all_there() -> None:
    rows = {
        name: int(number) for number, name in re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", TEXT, re.M)
    }
    known = {kind.name: kind.value for kind in MessageKind}
    known |= {flag.name: flag.value for flag in MessageFlag if flag}
    assert rows == known


def test_the_example_frame_is_one() -> None:
    (example,) = re.findall(r"^```\n([0-9a-f ]+)\n```", TEXT, re.M)
    head = encode_head({"method": "health", "args": {}})
    frame = encode_header(Message(MessageKind.REQUEST, 2, 0, head)) + head
    assert bytes.fromhex(example) == frame


def test_every_method_of_a_node_is_there() -> None:
    table = TEXT.partition("## Between client and node")[2]
    named = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M))))
    methods = {name for name, value in vars(NodeApi).items() if callable(value)}
    assert named == {name for name in methods if not name.startswith("_")}


def test_figures_are_the_codes() -> None:
    assert CHUNK == WINDOW == 262144
    assert "of 256 KiB" in TEXT
    assert "262144 bytes" in TEXT
    assert SessionLimits().max_message == 64 << 20


def test_every_method_of_a_nodes_objects_is_there() -> None:
    table = TEXT.partition("## Between client and node")[2]
    named = set(
        re.findall(r"`objects\.([a-z_]+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M)))
    )
    methods = {name for name, value in vars(ObjectApi).items() if callable(value)}
    assert named == {name for name in methods if not name.startswith("_")} - {"get"}  # a read
