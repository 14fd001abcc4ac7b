"""The artifact store on disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from spear_core.api import Artifact, ArtifactUpload, IsolationLevel, Limits
from spear_core.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactInUseError,
    ArtifactNotFoundError,
    InvalidRequestError,
)
from spear_core.node._artifacts import ArtifactStore


async def test_versions_count_up_and_the_latest_is_meant(
    artifacts: ArtifactStore, add_artifact: Callable[..., Awaitable[Artifact]]
) -> None:
    first = await add_artifact(content=b"one")
    second = await add_artifact(content=b"two")
    assert (first.version, second.version) == (1, 2)
    assert artifacts.resolve("f")[0] == second
    assert artifacts.resolve("f@1:go") == (first, "go")
    assert first.path.read_bytes() == b"one"
    assert first.path.stat().st_mode & 0o777 == 0o400
    with pytest.raises(ArtifactNotFoundError, match="it has 1, 2"):
        artifacts.resolve("f@3")
    with pytest.raises(ArtifactNotFoundError, match=r"there are: f.*spear deploy"):
        artifacts.resolve("g")


async def test_the_same_code_with_the_same_settings_is_the_same_version(
    artifacts: ArtifactStore, add_artifact: Callable[..., Awaitable[Artifact]]
) -> None:
    await add_artifact(content=b"one")
    for upload, exists in [
        (ArtifactUpload(name="f", filename="f.py", content=b"one"), True),
        (ArtifactUpload(name="f", filename="f.py", content=b"one", entry="e"), False),
        (ArtifactUpload(name="f", filename="f.py", content=b"one", env={"A": "1"}), False),
        (ArtifactUpload(name="g", filename="f.py", content=b"one"), False),
    ]:
        staged = await artifacts.stage(upload)
        candidate, found = artifacts.candidate(
            upload, staged, runtime="steered", shape="s", reuse=True
        )
        assert found is exists, upload
        assert candidate.version == (2 if not exists and upload.name == "f" else 1)


async def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    upload = ArtifactUpload(
        name="f",
        filename="f.sh",
        content=b"#!/bin/sh",
        entry="e",
        env={"A": "1"},
        args=("-x",),
        limits=Limits(memory_bytes=5, cpu_seconds=1.5),
        required_isolation=IsolationLevel.SYSCALLS,
        timeout_s=3.0,
        executable=True,
    )
    store = ArtifactStore(tmp_path, warn=pytest.fail)
    staged = await store.stage(upload)
    candidate, _ = store.candidate(upload, staged, runtime="r", shape="s", reuse=True)
    await store.commit("f", candidate)
    store.code.unstage(staged)
    deployed = store.resolve("f")[0]
    assert deployed.path.stat().st_mode & 0o777 == 0o500

    again = ArtifactStore(tmp_path, warn=pytest.fail)
    assert again.resolve("f")[0] == deployed
    assert (deployed.args, deployed.limits.memory_bytes, deployed.timeout_s) == (("-x",), 5, 3.0)
    assert again.all() == store.all()


async def test_an_unreadable_name_is_left_out_and_named(
    tmp_path: Path, artifacts: ArtifactStore, add_artifact: Callable[..., Awaitable[Artifact]]
) -> None:
    await add_artifact("good")
    await add_artifact("bad")
    (tmp_path / "artifacts/names/bad.json").write_bytes(b'{"next_version": 2, "vers')
    warnings: list[str] = []
    store = ArtifactStore(tmp_path / "artifacts", warn=warnings.append)
    assert [info.name for info in store.all()] == ["good"]
    assert len(warnings) == 1
    assert "'bad'" in warnings[0]
    with pytest.raises(ArtifactCorruptError, match=r"bad\.json"):
        store.resolve("bad")
    with pytest.raises(ArtifactCorruptError, match=r"bad\.json"):
        await store.stage(ArtifactUpload(name="bad", filename="f.py", content=b""))
    assert (tmp_path / "artifacts/names/bad.json").read_bytes().endswith(b"vers")


async def test_an_artifact_in_use_is_not_deleted(
    artifacts: ArtifactStore, add_artifact: Callable[..., Awaitable[Artifact]]
) -> None:
    first, second = await add_artifact(content=b"one"), await add_artifact(content=b"two")
    artifacts.use(first)
    with pytest.raises(ArtifactInUseError, match="1 unfinished task;"):
        artifacts.deletable("f", None)
    assert artifacts.deletable("f", 2) == [second]
    artifacts.unuse(first)
    assert artifacts.deletable("f", None) == [first, second]


async def test_a_deleted_version_takes_its_code_along_but_its_number_is_not_given_again(
    artifacts: ArtifactStore, add_artifact: Callable[..., Awaitable[Artifact]]
) -> None:
    first, second = await add_artifact(content=b"one"), await add_artifact(content=b"two")
    await artifacts.delete(second)
    assert not second.path.exists()
    assert first.path.exists()
    assert (await add_artifact(content=b"three")).version == 3
    with pytest.raises(ArtifactNotFoundError):
        artifacts.deletable("f", 2)


async def test_code_that_two_names_share_stays_until_both_are_gone(
    artifacts: ArtifactStore, add_artifact: Callable[..., Awaitable[Artifact]]
) -> None:
    one, other = await add_artifact("one"), await add_artifact("other")
    assert one.path == other.path
    await artifacts.delete(one)
    assert other.path.exists()
    await artifacts.delete(other)
    assert not other.path.exists()


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_changed_code_is_noticed(
    size: int, artifacts: ArtifactStore, add_artifact: Callable[..., Awaitable[Artifact]]
) -> None:
    artifact = await add_artifact(content=b"x" * size)
    await artifacts.verify(artifact)
    artifact.path.chmod(0o600)
    artifact.path.write_bytes(b"y" * size)
    with pytest.raises(ArtifactCorruptError, match="f@1 is not what was deployed"):
        await artifacts.verify(artifact)
    artifact.path.unlink()
    with pytest.raises(ArtifactCorruptError, match="cannot be read"):
        await artifacts.verify(artifact)


@pytest.mark.parametrize("bad", ["", "a b", "-a", "../a", "a/b", "x" * 101, "ä"])
async def test_bad_names_are_refused(artifacts: ArtifactStore, bad: str) -> None:
    with pytest.raises(InvalidRequestError, match="artifact name"):
        await artifacts.stage(ArtifactUpload(name=bad, filename="f", content=b""))


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a\0b"])
async def test_bad_file_names_are_refused(artifacts: ArtifactStore, bad: Any) -> None:
    with pytest.raises(InvalidRequestError, match="file name"):
        await artifacts.stage(ArtifactUpload(name="f", filename=bad, content=b""))


async def test_code_that_is_being_deployed_twice_stays_until_the_last_has_given_up(
    artifacts: ArtifactStore, tmp_path: Path
) -> None:
    upload = ArtifactUpload(name="f", filename="f.py", content=b"one")
    staged = await artifacts.stage(upload)
    assert await artifacts.stage(attrs.evolve(upload, name="g")) == staged
    artifacts.code.unstage(staged)
    assert (tmp_path / "artifacts/code" / staged.digest / "f.py").exists()
    artifacts.code.unstage(staged)
    assert not (tmp_path / "artifacts/code" / staged.digest).exists()


async def test_a_disk_that_cannot_be_written_is_named(
    artifacts: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/code").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"'f' cannot be stored: .*artifacts/code"):
        await artifacts.stage(ArtifactUpload(name="f", filename="f.py", content=b"one"))


async def test_code_of_a_deploy_that_was_cut_short_goes_with_the_next_start(
    artifacts: ArtifactStore, add_artifact: Callable[..., Awaitable[Artifact]], tmp_path: Path
) -> None:
    kept = await add_artifact()
    staged = await artifacts.stage(ArtifactUpload(name="g", filename="g.py", content=b"cut"))
    code = tmp_path / "artifacts/code"
    ArtifactStore(tmp_path / "artifacts", warn=pytest.fail)
    assert [path.name for path in code.iterdir()] == [kept.digest]

    await artifacts.stage(ArtifactUpload(name="g", filename="g.py", content=b"cut"))
    (tmp_path / "artifacts/names/bad.json").write_text("{")
    ArtifactStore(tmp_path / "artifacts", warn=lambda _: None)
    assert (code / staged.digest).exists()  # it may belong to what cannot be read
