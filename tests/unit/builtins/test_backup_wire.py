"""A backup through the local socket: what is being done, the report, errors, a client that goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from spear_core.api import BackupReport
from spear_core.builtins.local_socket import connect
from spear_core.errors import InvalidRequestError, SpearError, StoreFullError

REPORT = BackupReport(
    path="/b/monday",
    created_at=1.5,
    node_id="n-1",
    files=3,
    bytes=1 << 40,
    records=None,
    objects=7,
    artifacts=1,
)


@pytest.fixture
def backing_up(scripted: Any) -> Callable[[Any], Any]:
    """A node whose backups are made by this function."""

    def make(backup: Any) -> Any:
        node = scripted()
        node.backup = backup
        return node

    return make


async def test_what_is_done_and_what_was_done(
    open_door: Any, backing_up: Callable[[Any], Any]
) -> None:
    asked, told = [], []
    heard = trio.Event()

    async def backup(directory: str, *, logs: bool, tell: Callable[[str], None]) -> BackupReport:
        asked.append((directory, logs))
        await trio.to_thread.run_sync(tell, "copying äpples")
        await heard.wait()
        return REPORT

    def hear(text: str) -> None:
        told.append(text)
        heard.set()

    async with open_door(backing_up(backup)) as url, connect(url) as client:
        assert await client.backup("/b/monday", logs=True, tell=hear) == REPORT
        assert await client.backup("/b/tuesday") == REPORT
    assert asked == [("/b/monday", True), ("/b/tuesday", False)]
    assert told == ["copying äpples"]


async def test_its_errors_arrive(open_door: Any, backing_up: Callable[[Any], Any]) -> None:
    async def full(directory: str, **options: Any) -> BackupReport:
        raise StoreFullError(f"no room left on the disk of {directory}")

    async with open_door(backing_up(full)) as url, connect(url) as client:
        with pytest.raises(SpearError, match="no room left on the disk of /b") as raised:
            await client.backup("/b")
        assert raised.value.code == "resource_exhausted"
        with pytest.raises(InvalidRequestError, match="directory"):
            await client.backup("")


async def test_a_client_that_goes_ends_it(open_door: Any, backing_up: Callable[[Any], Any]) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def backup(directory: str, **options: Any) -> BackupReport:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    async with open_door(backing_up(backup)) as url, connect(url) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.backup, "/b")
            await begun.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            await ended.wait()
        begun, ended = trio.Event(), trio.Event()
        async with connect(url) as other, trio.open_nursery() as nursery:
            nursery.start_soon(other.backup, "/b")
            await begun.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            await ended.wait()
