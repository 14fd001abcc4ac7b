"""Lines out of bytes."""

from __future__ import annotations

from spear_runtime_process._streams import Lines


def test_lines_are_cut_at_newlines_only() -> None:
    seen: list[str] = []
    lines = Lines(seen.append, 1000)
    lines.feed(b"on")
    lines.feed(b"e\r\ntwo\nthr")
    assert seen == ["one", "two"]
    lines.flush()
    assert seen == ["one", "two", "thr"]
    assert lines.tail == "one\ntwo\nthr"


def test_bytes_that_are_no_text_are_shown_as_far_as_they_can_be() -> None:
    seen: list[str] = []
    Lines(seen.append, 1000).feed(b"\xff\xfe ok\n")
    assert seen == ["�� ok"]


def test_over_the_limit_only_the_last_lines_are_kept() -> None:
    seen: list[str] = []
    lines = Lines(seen.append, 100)
    for number in range(1000):
        lines.feed(b"line %d\n" % number)
    lines.flush()
    assert len(seen) < 20
    assert seen[-1] == "over 100 bytes of output: the rest is not logged"
    assert lines.tail.splitlines()[-1] == "line 999"
    lines.restart()
    lines.feed(b"again\n")
    assert seen[-1] == "again"
