"""Eight processes count one key up, each through the process that has the store open.

``SPEAR_TEST_INCREMENTS`` says how often each of them does; by default a few hundred times, 20,000
in ``nox -s endurance``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio
from counting_process import ANSWER, REQUEST

from spear_core.api import Compare, KeyValue, MetadataStore, PutKey
from spear_core.testing import make_context
from spear_store_lmdb import LmdbMetadataConfig, open_lmdb_metadata

PROCESSES = 8
TIMES = int(os.environ.get("SPEAR_TEST_INCREMENTS", "200"))


async def serve(store: MetadataStore, stream: trio.SocketStream) -> None:
    """Try to write what the process at the other end asks for, and tell it how things are."""
    async with stream:
        while asked := await stream.receive_some(REQUEST.size):
            assert len(asked) == REQUEST.size
            count, revision = REQUEST.unpack(asked)
            result = await store.transact(
                [PutKey(key=b"n", value=b"%d" % count)],
                compares=[Compare(key=b"n", mod_revision=revision)],
            )
            if result.succeeded:
                answer = ANSWER.pack(True, count, result.revision)
            else:
                (found,) = result.current
                assert isinstance(found, KeyValue), "somebody has written"
                answer = ANSWER.pack(False, int(found.value), found.mod_revision)
            await stream.send_all(answer)


async def test_increments_of_many_processes_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "door"
    script = Path(__file__).with_name("counting_process.py")
    config = LmdbMetadataConfig(metadata_history=1000)
    async with open_lmdb_metadata(make_context(tmp_path), config) as store:
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(path))
        listening.listen()
        async with trio.open_nursery() as doors:
            doors.start_soon(
                trio.serve_listeners,
                lambda stream: serve(store, stream),
                [trio.SocketListener(listening)],
            )
            async with trio.open_nursery() as nursery:
                for _ in range(PROCESSES):
                    command = [sys.executable, str(script), str(path), str(TIMES)]
                    nursery.start_soon(trio.run_process, command)
            doors.cancel_scope.cancel()
        found = await store.get(b"n")
        assert found is not None
        assert (int(found.value), found.version) == (PROCESSES * TIMES, PROCESSES * TIMES)
