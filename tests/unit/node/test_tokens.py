"""Random names."""

from __future__ import annotations

import os
import string

import pytest

from spear_core.node._tokens import TokenSource


def test_every_token_is_another_one_over_several_fillings() -> None:
    source = TokenSource()
    tokens = [source.next() for _ in range(1_000)]
    assert len(set(tokens)) == 1_000
    assert all(len(token) == 16 and set(token) <= set(string.hexdigits) for token in tokens)


def test_two_sources_share_none() -> None:
    one, other = TokenSource(), TokenSource()
    assert not {one.next() for _ in range(300)} & {other.next() for _ in range(300)}


def test_each_byte_is_the_systems_and_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = bytearray()
    urandom = os.urandom

    def counted(size: int) -> bytes:
        given.extend(fresh := urandom(size))
        return fresh

    monkeypatch.setattr(os, "urandom", counted)
    source = TokenSource()
    tokens = "".join(source.next() for _ in range(256))
    assert tokens == given.hex()
