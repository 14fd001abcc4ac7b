"""kill -9 in mid-write, again and again: what was acknowledged is there, whole.

``SPEAR_KILL_ROUNDS`` says how many rounds; by default a few, 120 in ``nox -s endurance``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from killed_writer import TASKS, value

from spear_core.api import MetadataStore, ObjectStore, StoreMaintenance
from spear_core.testing import make_context
from spear_store_lmdb import (
    LmdbMetadataConfig,
    LmdbObjectsConfig,
    open_lmdb_metadata,
    open_lmdb_objects,
)

ROUNDS = int(os.environ.get("SPEAR_KILL_ROUNDS", "5"))


def killed_run(folder: Path, durability: str, dice: random.Random) -> list[list[str]]:
    """Let the writer write a while, kill it, and give what it said."""
    writer = Path(__file__).with_name("killed_writer.py")
    seed = dice.randrange(1 << 30)
    command = [sys.executable, str(writer), str(folder), durability, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(dice.randrange(20, 600))]
        process.kill()
        lines += process.stdout.readlines()
    assert process.returncode == -9, "it ended by itself"
    return [line.split() for line in lines if line.endswith("\n")]


async def check_objects(store: ObjectStore, said: dict[str, int]) -> None:
    stats = {stat.key: stat for stat in (await store.list()).objects}
    for number in range(TASKS):
        key = f"task {number}"
        acknowledged = said.get(f"object {number}", 0)
        if key not in stats:
            assert acknowledged == 0
            continue
        version = stats[key].version
        assert acknowledged <= version <= acknowledged + 1, "one more may be on its way"
        assert (await store.get(key))[1] == value(key, version)
        refs = said.get(f"refs {number}", 0)
        assert refs <= stats[key].refs <= refs + 1
        assert sum(holder.refs for holder in await store.holders(key)) == stats[key].refs


async def check_metadata(store: MetadataStore, said: dict[str, int]) -> None:
    page = await store.range()
    found = {item.key: item for item in page.items}
    assert page.revision >= said.get("revision", 0)
    total = 0
    for number in range(TASKS):
        acknowledged = said.get(f"count {number}", 0)
        item = found.get(b"count %d" % number)
        count = int(item.value) if item else 0
        assert acknowledged <= count <= acknowledged + 1, "one more may be on its way"
        if item is not None:
            assert found[b"copy %d" % number].value == item.value
            assert item.version == count
        total += count
    assert total == page.revision, "every revision is one increment"


async def check_all(store: object) -> None:
    """No index, count or file is other than the records say."""
    assert isinstance(store, StoreMaintenance)
    assert (await store.check()).problems == ()


@pytest.mark.parametrize("durability", ["system", "process"])
async def test_killed_in_mid_write(tmp_path: Path, durability: str) -> None:
    dice = random.Random(durability)
    said: dict[str, int] = defaultdict(int)
    context = make_context(tmp_path)
    for _ in range(ROUNDS):
        for words in killed_run(tmp_path, durability, dice):
            said[f"{words[0]} {words[1]}"] = int(words[2])
            if words[0] == "count":
                said["revision"] = max(said["revision"], int(words[3]))
        async with open_lmdb_objects(context, LmdbObjectsConfig()) as objects:
            await check_objects(objects, said)
            await check_all(objects)
            blobs = context.state_dir / "objects" / "blobs"
            large = [s for s in (await objects.list()).objects if s.size > 65_536]
            assert len(list(blobs.iterdir())) == len(large), "nothing of a crash is left"
            for stat in (await objects.list()).objects:
                said[f"object {stat.key.split()[1]}"] = stat.version
                said[f"refs {stat.key.split()[1]}"] = stat.refs
        async with open_lmdb_metadata(context, LmdbMetadataConfig()) as metadata:
            await check_metadata(metadata, said)
            await check_all(metadata)
            for item in (await metadata.range(b"count ")).items:
                said[item.key.decode()] = int(item.value)
    assert said["revision"] > 20 * ROUNDS
