"""How the processes of one test run keep out of each other's way."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def open_turns(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Another process of the run, as far as the locks know: they belong to an open file."""
    path = Path(__file__).parents[2] / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_the_root", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def open_one() -> Any:
        turns = module.Turns(tmp_path)
        request.addfinalizer(turns.close)
        return turns

    return open_one


class Waiting:
    """Somebody in a thread who takes a turn and keeps it until told otherwise."""

    def __init__(self, turns: Any, *, alone: bool) -> None:
        self.entered, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(turns, alone))
        self._thread.start()

    def _run(self, turns: Any, alone: bool) -> None:
        with turns.taken(alone=alone):
            self.entered.set()
            self._leave.wait()

    def leave(self) -> None:
        self._leave.set()
        self._thread.join()


@pytest.fixture
def take(open_turns: Any) -> Iterator[Any]:
    everybody: list[Waiting] = []

    def take(*, alone: bool) -> Waiting:
        everybody.append(Waiting(open_turns(), alone=alone))
        return everybody[-1]

    yield take
    for each in everybody:
        each.leave()


def test_others_run_together(take: Any) -> None:
    assert take(alone=False).entered.wait(60)
    assert take(alone=False).entered.wait(60)


def test_alone_is_alone(take: Any) -> None:
    other = take(alone=False)
    assert other.entered.wait(60)
    alone = take(alone=True)
    assert not alone.entered.wait(0.1)
    other.leave()
    assert alone.entered.wait(60)
    second, third = take(alone=True), take(alone=False)
    assert not second.entered.wait(0.1)
    assert not third.entered.wait(0.1)
    alone.leave()
    second.leave()
    third.leave()
    assert second.entered.is_set()
    assert third.entered.is_set()


def test_who_waits_to_be_alone_is_not_overtaken(take: Any) -> None:
    first = take(alone=False)
    assert first.entered.wait(60)
    alone = take(alone=True)
    assert not alone.entered.wait(0.1), "it stands in the gate by now"
    late = take(alone=False)
    assert not late.entered.wait(0.1)
    first.leave()
    assert alone.entered.wait(60)
    assert not late.entered.is_set()
