"""Artifacts and the node's identity in a store that lasts, and the way there from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest

from spear_core.api import ArtifactState, ArtifactUpload, InvokeRequest, SpearletConfig, StoreConfig
from spear_core.errors import (
    ArtifactCorruptError,
    ConfigError,
    StoreCorruptError,
    StoreFullError,
)

UPLOAD = ArtifactUpload(name="f", filename="f.st", content=b"code", env={"A": "1"})


def raises(error: type[Exception], match: str) -> Any:
    """Whatever groups it comes in."""
    return pytest.RaisesGroup(
        pytest.RaisesExc(error, match=match), flatten_subgroups=True, allow_unwrapped=True
    )


async def several(api: Any) -> None:
    """Versions in every state."""
    for content in (b"one", b"two", b"three"):
        await api.deploy(attrs.evolve(UPLOAD, content=content))
    await api.delete_artifact("f", version=3)
    await api.set_latest("f", 1)
    await api.set_artifact_state("f", 2, ArtifactState.DISABLED)
    await api.deploy(attrs.evolve(UPLOAD, name="g"))


async def test_what_is_deployed_is_in_the_store(
    open_steered_node: Any, disk: Any, tmp_path: Path
) -> None:
    async with open_steered_node(disk=disk) as node:
        await several(node.api)
        listed = await node.api.list_artifacts()
        crashed = await disk.copy()
    assert not list((tmp_path / "state/artifacts").glob("names/*"))
    async with open_steered_node(disk=crashed) as node:
        assert await node.api.list_artifacts() == listed
        details = await node.api.get_artifact("f")
        assert (details.info.version, details.settings.env) == (1, {"A": "1"})
        assert (await node.api.deploy(UPLOAD)).version == 4, "a number is not given twice"


async def test_what_files_had_goes_to_the_store_once(
    open_steered_node: Any, disk: Any, tmp_path: Path
) -> None:
    names = tmp_path / "state/artifacts/names"
    async with open_steered_node() as node:
        await several(node.api)
        listed = await node.api.list_artifacts()
        node_id = (await node.api.status()).node_id
    (names / "bad.json").write_text("{")
    async with open_steered_node(disk=disk) as node:
        assert await node.api.list_artifacts() == listed
        assert (await node.api.status()).node_id == node_id
        assert (await node.api.invoke(InvokeRequest(function="f"))).success
        with pytest.raises(ArtifactCorruptError, match=r"bad\.json"):
            await node.api.get_artifact("bad")
        await node.api.delete_artifact("g")
    assert sorted(path.name for path in names.iterdir()) == [
        "bad.json", "f.json.taken-over", "g.json.taken-over",
    ]  # fmt: skip
    async with open_steered_node(disk=disk) as node:
        assert {info.name for info in await node.api.list_artifacts()} == {"f"}


async def test_taking_over_can_be_interrupted(
    open_steered_node: Any, disk: Any, tmp_path: Path
) -> None:
    async with open_steered_node() as node:
        for number in range(140):  # more changes than a transaction has
            await node.api.deploy(attrs.evolve(UPLOAD, content=b"%d" % number))
        listed = await node.api.list_artifacts()
    put = disk.metadata.transact
    calls = 0

    async def fail_in_the_middle(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoreFullError("no room")
        return await put(*args, **options)

    disk.metadata.transact = fail_in_the_middle
    with raises(StoreFullError, "no room"):
        async with open_steered_node(disk=disk):
            pass
    disk.metadata.transact = put
    async with open_steered_node(disk=disk) as node:
        assert await node.api.list_artifacts() == listed


async def test_a_full_store_deploys_nothing(open_steered_node: Any, disk: Any) -> None:
    async with open_steered_node(disk=disk) as node:
        await node.api.deploy(UPLOAD)
        disk.metadata.failure = StoreFullError("no room")
        with pytest.raises(StoreFullError):
            await node.api.deploy(attrs.evolve(UPLOAD, content=b"more"))
        with pytest.raises(StoreFullError):
            await node.api.set_artifact_state("f", 1, ArtifactState.DISABLED)
        with pytest.raises(StoreFullError):
            await node.api.delete_artifact("f")
        (info,) = await node.api.list_artifacts()
        assert (info.version, info.state) == (1, ArtifactState.READY)
        disk.metadata.failure = None
        assert (await node.api.deploy(attrs.evolve(UPLOAD, content=b"more"))).version == 2


async def test_a_record_of_a_newer_node_is_left_alone(open_steered_node: Any, disk: Any) -> None:
    async with open_steered_node(disk=disk) as node:
        await several(node.api)
    head = msgspec.msgpack.decode((await disk.metadata.get(b"artifacts/f")).value)
    newer = msgspec.msgpack.encode({**head, "format": 999, "more": 1})
    await disk.metadata.put(b"artifacts/f", newer)
    async with open_steered_node(disk=disk) as node:
        assert {info.name for info in await node.api.list_artifacts()} == {"g"}
        with pytest.raises(ArtifactCorruptError, match="newer version"):
            await node.api.deploy(UPLOAD)
    assert (await disk.metadata.get(b"artifacts/f")).value == newer


async def test_a_node_stays_who_it_is_whatever_becomes_of_the_file(
    open_steered_node: Any, runtime: Any, disk: Any, tmp_path: Path
) -> None:
    async with open_steered_node(disk=disk) as node:
        node_id = (await node.api.status()).node_id
    (tmp_path / "state/node.id").unlink()
    async with open_steered_node(disk=disk) as node:
        assert (await node.api.status()).node_id == node_id
        await node.api.deploy(UPLOAD)
        task = (await node.api.invoke(InvokeRequest(function="f"))).task
        assert task.result.node_id == node_id
        assert runtime.context.node_id == node_id
    assert (tmp_path / "state/node.id").read_text().strip() == node_id


async def test_a_store_that_is_missing_is_missed(
    open_steered_node: Any, disk: Any, tmp_path: Path
) -> None:
    async with open_steered_node(disk=disk) as node:
        await node.api.deploy(UPLOAD)
    with raises(ConfigError, r"'disk', which no plugin provides now.*\[stores\]"):
        async with open_steered_node():
            pass
    memory = SpearletConfig(stores=StoreConfig(metadata="memory"))
    async with open_steered_node(memory) as node:
        assert await node.api.list_artifacts() == []
        await node.api.deploy(attrs.evolve(UPLOAD, name="h"))
    async with open_steered_node(disk=disk) as node:
        assert {info.name for info in await node.api.list_artifacts()} == {"f", "h"}
        assert (await node.api.invoke(InvokeRequest(function="f"))).success, "its code is there"


async def test_a_store_that_is_empty_and_should_not_be(
    open_steered_node: Any, disk: Any, tmp_path: Path
) -> None:
    """Its volume is not mounted, for instance: no code is removed for the lack of artifacts."""
    async with open_steered_node(disk=disk) as node:
        await node.api.deploy(UPLOAD)
    mounted, nothing = disk.metadata, type(disk)()
    disk.metadata = nothing.metadata
    with raises(StoreCorruptError, r"'disk' of .*state is empty.* volume"):
        async with open_steered_node(disk=disk):
            pass
    disk.metadata = mounted
    async with open_steered_node(disk=disk) as node:
        assert (await node.api.invoke(InvokeRequest(function="f"))).success, "its code is there"
    disk.metadata = nothing.metadata
    (tmp_path / "state/node.store").unlink()
    async with open_steered_node(disk=disk) as node:
        assert await node.api.list_artifacts() == []
