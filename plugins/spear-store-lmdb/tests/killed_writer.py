"""A process that writes until it is killed, saying what it was promised. See ``test_kill.py``.

``python killed_writer.py DIRECTORY DURABILITY SEED``: eight tasks write objects, small and large,
at once, piece by piece and out of a pipe, and count up metadata keys by compare-and-swap; a line on
standard output says, after each acknowledgement, what was acknowledged.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from functools import partial
from pathlib import Path

import trio

from spear_core.api import Compare, MetadataStore, ObjectStore, ObjectWriter, PutKey
from spear_core.testing import make_context
from spear_store_lmdb import (
    LmdbMetadataConfig,
    LmdbObjectsConfig,
    _recycled_files,
    open_lmdb_metadata,
    open_lmdb_objects,
)

TASKS = 8
PIECE = 40_000
"""Bytes that an empty pipe takes at once."""


def value(key: str, version: int) -> bytes:
    """What that version of that object holds: its size and bytes follow from the two."""
    seed = hashlib.sha256(f"{key} {version}".encode()).digest()
    size = (10, 3_000, 100_000)[seed[0] % 3] + seed[1]
    return (seed * (size // 32 + 1))[:size]


def say(*words: object) -> None:
    """In one write, so that a kill does not leave half a line with a meaning of its own."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def through_a_pipe(writer: ObjectWriter, piece: bytes) -> None:
    """As a value comes from an agent."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert os.write(writing, piece) == len(piece)
        await writer.write_from(reading, len(piece))
    finally:
        os.close(reading)
        os.close(writing)


async def write_objects(store: ObjectStore, dice: random.Random, number: int) -> None:
    key = f"task {number}"
    found = [stat for stat in (await store.list(key)).objects if stat.key == key]
    version = found[0].version if found else 0
    while True:
        content = value(key, version + 1)
        way = dice.randrange(4)
        if way < 2:
            stat = await store.put(key, content, expect=version, hashed=False)
        else:
            async with store.create(key, expect=version, hashed=dice.random() < 0.5) as writer:
                for start in range(0, len(content), PIECE):
                    append = writer.write if way == 2 else partial(through_a_pipe, writer)
                    await append(content[start : start + PIECE])
                stat = await writer.commit()
        version = stat.version
        say("object", number, version)
        if dice.random() < 0.2:
            stat = await store.add_ref(key, holder=f"h{dice.randrange(3)}")
            say("refs", number, stat.refs)


async def count_up(store: MetadataStore, number: int) -> None:
    """Two keys in one transaction: a counter, and a copy that must never differ from it."""
    key, copy = b"count %d" % number, b"copy %d" % number
    while True:
        found = await store.get(key)
        count = b"%d" % ((int(found.value) if found else 0) + 1)
        result = await store.transact(
            [PutKey(key=key, value=count), PutKey(key=copy, value=count)],
            compares=[Compare(key=key, mod_revision=found.mod_revision if found else 0)],
        )
        assert result.succeeded
        say("count", number, count.decode(), result.revision)


async def main(folder: Path, durability: str, seed: int) -> None:
    _recycled_files._LEAST = 50_000  # large ones take each other's files, where they may
    context = make_context(folder)
    dice = random.Random(seed)
    async with (
        open_lmdb_objects(context, LmdbObjectsConfig(objects_durability=durability)) as objects,
        open_lmdb_metadata(context, LmdbMetadataConfig(metadata_durability=durability)) as metadata,
        trio.open_nursery() as nursery,
    ):
        for number in range(TASKS):
            nursery.start_soon(write_objects, objects, dice, number)
            nursery.start_soon(count_up, metadata, number)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
