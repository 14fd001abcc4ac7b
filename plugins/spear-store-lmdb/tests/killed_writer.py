"""A process that writes until it is killed, saying what it was promised. See ``test_kill.py``.

``python killed_writer.py DIRECTORY DURABILITY SEED``: eight tasks write objects, small and large,
at once and piece by piece, and count up metadata keys by compare-and-swap; a line on standard
output says, after each acknowledgement, what was acknowledged.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path

import trio

from spear_core.api import Compare, MetadataStore, ObjectStore, PutKey
from spear_core.testing import make_context
from spear_store_lmdb import (
    LmdbMetadataConfig,
    LmdbObjectsConfig,
    open_lmdb_metadata,
    open_lmdb_objects,
)

TASKS = 8


def value(key: str, version: int) -> bytes:
    """What that version of that object holds: its size and bytes follow from the two."""
    seed = hashlib.sha256(f"{key} {version}".encode()).digest()
    size = (10, 3_000, 100_000)[seed[0] % 3] + seed[1]
    return (seed * (size // 32 + 1))[:size]


def say(*words: object) -> None:
    """In one write, so that a kill does not leave half a line with a meaning of its own."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def write_objects(store: ObjectStore, dice: random.Random, number: int) -> None:
    key = f"task {number}"
    found = [stat for stat in (await store.list(key)).objects if stat.key == key]
    version = found[0].version if found else 0
    while True:
        content = value(key, version + 1)
        if dice.random() < 0.5:
            stat = await store.put(key, content, expect=version, hashed=False)
        else:
            async with store.create(key, expect=version) as writer:
                for start in range(0, len(content), 40_000):
                    await writer.write(content[start : start + 40_000])
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
