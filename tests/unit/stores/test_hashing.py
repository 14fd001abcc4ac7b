"""sha256 beside what else is done with a value."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import pytest

from spear_core.stores import hashed_beside

LARGE = bytes(range(256)) * 40_000


@pytest.mark.parametrize("value", [b"", b"small", LARGE])
def test_the_digest_is_there_in_the_end(value: bytes) -> None:
    with hashed_beside(memoryview(value), wanted=True) as digest:
        assert digest() == hashlib.sha256(value).hexdigest()
    with hashed_beside(memoryview(value), wanted=False) as digest:
        assert digest() == ""


def test_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a failure wait for the whole of a value."""
    hashed: list[int] = []
    begun, failed = threading.Event(), threading.Event()

    class Slow:
        def update(self, piece: memoryview) -> None:
            hashed.append(len(piece))
            begun.set()
            failed.wait(60)

    monkeypatch.setattr(hashlib, "sha256", Slow)

    def work() -> None:
        with hashed_beside(memoryview(LARGE), wanted=True):
            begun.wait(60)
            threading.Timer(0.1, failed.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert 0 < sum(hashed) < len(LARGE)
    assert "spear-sha256" not in [thread.name for thread in threading.enumerate()]


def test_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with hashed_beside(memoryview(LARGE), wanted=True) as digest:
        assert digest() == hashlib.sha256(LARGE).hexdigest()
