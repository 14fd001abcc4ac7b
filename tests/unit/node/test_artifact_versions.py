"""Versions and what an operator does with them; dependencies; bundles in the store."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from spear_core._bundle import pack
from spear_core.api import (
    Artifact,
    ArtifactConfig,
    ArtifactState,
    ArtifactUpload,
    ErrorInfo,
    ExecutionConfig,
    ExecutionMode,
    ExecutionRequest,
    ExecutionResponse,
    InstanceState,
    InvokeRequest,
    NodeApi,
    PoolSettings,
    SecretSource,
    SpearletConfig,
    TaskState,
)
from spear_core.errors import (
    ArtifactCorruptError,
    ArtifactDisabledError,
    ArtifactError,
    ArtifactInUseError,
    ArtifactNotFoundError,
    CircuitOpenError,
    DependencyError,
    InstanceLostError,
    InvalidRequestError,
    SecretNotFoundError,
    UnsupportedArtifactError,
)
from spear_core.node import _code
from spear_core.node._artifacts import ArtifactStore

Add = Callable[..., Awaitable[Artifact]]


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., ArtifactUpload]:
    def make(name: str = "b", **files: str) -> ArtifactUpload:
        root = tmp_path / "source"
        for path, text in {"main": "code", **files}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        content = pack(root, ["main", *files], limit=1 << 20)
        return ArtifactUpload(name=name, filename="main", content=content, bundle=True)

    return make


async def deploy(store: ArtifactStore, upload: ArtifactUpload) -> Artifact:
    staged = await store.stage(upload)
    try:
        candidate, exists = store.candidate(upload, staged, runtime="r", shape="s", reuse=True)
        if not exists:
            await store.commit(upload.name, candidate)
        return store.resolve(upload.name)[0]
    finally:
        store.code.unstage(staged)


# --- latest -------------------------------------------------------------------------------------


async def test_the_latest_moves_with_a_deploy_and_by_hand(
    artifacts: ArtifactStore, add_artifact: Add, tmp_path: Path
) -> None:
    first, second = await add_artifact(content=b"one"), await add_artifact(content=b"two")
    assert (await artifacts.set_latest("f", 1)).latest
    assert artifacts.resolve("f")[0] == first
    assert [(a.version, a.latest) for a in artifacts.all()] == [(2, False), (1, True)]
    assert ArtifactStore(tmp_path / "artifacts", warn=pytest.fail).resolve("f")[0] == first
    await artifacts.set_latest("f", 2)
    assert artifacts.resolve("f")[0] == second
    with pytest.raises(ArtifactNotFoundError, match="no version 3; it has 1, 2"):
        await artifacts.set_latest("f", 3)
    await artifacts.set_latest("f", 1)
    assert (await add_artifact(content=b"three")).version == 3


async def test_the_same_as_the_latest_is_that_version_the_same_as_another_is_a_new_one(
    artifacts: ArtifactStore,
) -> None:
    one = ArtifactUpload(name="f", filename="f.py", content=b"one")
    two = attrs.evolve(one, content=b"two")
    assert [(await deploy(artifacts, u)).version for u in (one, two, two, one)] == [1, 2, 2, 3]
    await artifacts.set_latest("f", 2)
    assert [(await deploy(artifacts, u)).version for u in (two, one)] == [2, 4]
    assert artifacts.resolve("f@1")[0].digest == artifacts.resolve("f@4")[0].digest


async def test_a_list_and_a_tuple_of_arguments_are_the_same(
    artifacts: ArtifactStore, tmp_path: Path
) -> None:
    one = ArtifactUpload(name="f", filename="f.py", content=b"one", args=("-x",))
    two = attrs.evolve(one, args=["-x"])  # type: ignore[arg-type]
    assert [(await deploy(artifacts, u)).version for u in (two, one)] == [1, 1]
    again = ArtifactStore(tmp_path / "artifacts", warn=pytest.fail)
    assert (await deploy(again, two)).version == 1


async def test_when_the_latest_goes_the_newest_that_is_left_is(
    artifacts: ArtifactStore, add_artifact: Add
) -> None:
    first, second, third = [await add_artifact(content=c) for c in (b"1", b"2", b"3")]
    await artifacts.set_latest("f", 1)
    await artifacts.delete(second)
    assert artifacts.resolve("f")[0] == first
    await artifacts.delete(first)
    assert artifacts.resolve("f")[0] == third


# --- states -------------------------------------------------------------------------------------


async def test_a_disabled_version_takes_no_tasks(
    artifacts: ArtifactStore, add_artifact: Add, tmp_path: Path
) -> None:
    first, second = await add_artifact(content=b"one"), await add_artifact(content=b"two")
    assert (
        await artifacts.set_state("f", 2, ArtifactState.DISABLED)
    ).state is ArtifactState.DISABLED
    again = ArtifactStore(tmp_path / "artifacts", warn=pytest.fail)
    for store in (artifacts, again):
        with pytest.raises(ArtifactDisabledError, match=r"f@2 is disabled.*enable f@2"):
            store.resolve("f")
        assert store.resolve("f@1")[0] == first
    with pytest.raises(ArtifactDisabledError, match="cannot be the latest"):
        await artifacts.set_latest("f", 2)
    await artifacts.set_state("f", 2, ArtifactState.READY)
    assert artifacts.resolve("f")[0] == second
    for state in (ArtifactState.PREPARING, ArtifactState.DELETING):
        with pytest.raises(InvalidRequestError, match="'ready' or 'disabled'"):
            await artifacts.set_state("f", 2, state)


async def test_what_is_being_prepared_is_listed_with_what_is_done(
    artifacts: ArtifactStore, add_artifact: Add
) -> None:
    await add_artifact()
    upload = ArtifactUpload(name="f", filename="f.py", content=b"new")
    staged = await artifacts.stage(upload)
    candidate, _ = artifacts.candidate(upload, staged, runtime="r", shape="s", reuse=True)
    with artifacts.preparing("f", candidate) as artifact:
        artifacts.report(artifact, "installing 3 requirements")
        newest, kept = artifacts.all()
        assert (newest.version, newest.state) == (2, ArtifactState.PREPARING)
        assert (newest.message, newest.latest) == ("installing 3 requirements", False)
        assert (kept.version, kept.latest) == (1, True)
        assert artifacts.resolve("f")[0].version == 1
    assert [a.version for a in artifacts.all()] == [1]


# --- dependencies -------------------------------------------------------------------------------


async def test_what_another_depends_on_stays(artifacts: ArtifactStore, add_artifact: Add) -> None:
    await add_artifact("base", content=b"1")
    await add_artifact("base", content=b"2")
    await add_artifact("user", dependencies=("base",))
    await add_artifact("pinned", dependencies=("base@1",))
    with pytest.raises(ArtifactInUseError, match=r"pinned@1, user@1 depend on base; delete"):
        artifacts.deletable("base", None)
    with pytest.raises(ArtifactInUseError, match=r"pinned@1 depends on base@1"):
        artifacts.deletable("base", 1)
    await artifacts.delete(*artifacts.deletable("base", 2))
    with pytest.raises(ArtifactInUseError, match=r"pinned@1, user@1"):
        artifacts.deletable("base", 1)
    assert artifacts.details("base@1").dependents == ("pinned@1", "user@1")
    for name in ("user", "pinned"):
        await artifacts.delete(*artifacts.deletable(name, None))
    assert artifacts.deletable("base", None)


async def test_a_dependency_that_is_missing_is_named(
    artifacts: ArtifactStore, add_artifact: Add
) -> None:
    base = await add_artifact("base")
    artifacts.check_dependencies("f", ("base", "base@1"))
    with pytest.raises(DependencyError, match=r"f depends on 'base@7'.*it has 1"):
        artifacts.check_dependencies("f", ("base", "base@7"))
    with pytest.raises(DependencyError, match=r"f depends on 'other'.*no artifact named"):
        artifacts.check_dependencies("f", ("other",))
    for bad in ("base:entry", "a b@x", ""):
        with pytest.raises(InvalidRequestError, match=r"name\[@version\]"):
            artifacts.check_dependencies("f", (bad,))
    await add_artifact("user", dependencies=("base",))
    with artifacts.leaving([base]), pytest.raises(DependencyError, match="being deleted"):
        artifacts.resolve("user")


# --- bundles ------------------------------------------------------------------------------------


async def test_a_bundle_is_stored_as_a_tree_that_nobody_changes(
    artifacts: ArtifactStore, bundle: Any, tmp_path: Path
) -> None:
    upload = bundle(**{"lib/part": "part"})
    artifact = await deploy(artifacts, upload)
    assert artifact.root == tmp_path / "artifacts/code" / artifact.digest
    assert artifact.path.read_text() == "code"
    assert (artifact.root / "lib/part").read_text() == "part"
    modes = [p.stat().st_mode & 0o777 for p in (artifact.root, artifact.root / "lib")]
    assert modes == [0o500, 0o500]
    info = artifacts.info("b", 1)
    assert info.size == len("code") + len("part")
    assert artifacts.details("b").bundle
    await artifacts.verify(artifact)
    assert ArtifactStore(tmp_path / "artifacts", warn=pytest.fail).resolve("b")[0] == artifact
    assert (await deploy(artifacts, upload)).version == 1
    await artifacts.delete(artifact)
    assert list((tmp_path / "artifacts/code").iterdir()) == []


def _change(root: Path) -> None:
    (root / "lib/part").chmod(0o600)
    (root / "lib/part").write_text("tart")
    (root / "lib/part").chmod(0o400)


def _add(root: Path) -> None:
    (root / "lib").chmod(0o700)
    (root / "lib/more").write_text("")


def _remove(root: Path) -> None:
    (root / "lib").chmod(0o700)
    (root / "lib/part").unlink()


def _mode(root: Path) -> None:
    (root / "main").chmod(0o500)


def _link(root: Path) -> None:
    root.chmod(0o700)
    (root / "link").symlink_to("/etc")


@pytest.mark.parametrize("damage", [_change, _add, _remove, _mode, _link])
async def test_a_damaged_bundle_is_noticed_and_mended_by_the_next_deploy(
    artifacts: ArtifactStore, bundle: Any, damage: Callable[[Path], None]
) -> None:
    upload = bundle(**{"lib/part": "part"})
    artifact = await deploy(artifacts, upload)
    assert artifact.root is not None
    damage(artifact.root)
    with pytest.raises(ArtifactCorruptError, match="deploy it again"):
        await artifacts.verify(artifact)
    assert await deploy(artifacts, upload) == artifact
    await artifacts.verify(artifact)


async def test_a_damaged_file_is_mended_by_the_next_deploy(
    artifacts: ArtifactStore, add_artifact: Add
) -> None:
    artifact = await add_artifact(content=b"good")
    artifact.path.chmod(0o600)
    artifact.path.write_bytes(b"evil")
    await add_artifact("g", content=b"good")
    await artifacts.verify(artifact)


async def test_a_bundle_without_its_file_is_refused_and_leaves_nothing(
    artifacts: ArtifactStore, bundle: Any, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError, match="has no file 'nothing'"):
        await artifacts.stage(attrs.evolve(bundle(), filename="nothing"))
    with pytest.raises(InvalidRequestError, match="no zip archive"):
        await artifacts.stage(attrs.evolve(bundle(), content=b"code"))
    assert list((tmp_path / "artifacts/code").iterdir()) == []


async def test_code_that_is_too_large_is_refused(tmp_path: Path, bundle: Any) -> None:
    config = ArtifactConfig(max_bytes=5, max_files=2)
    store = ArtifactStore(tmp_path / "artifacts", warn=pytest.fail, config=config)
    with pytest.raises(InvalidRequestError, match=r"has 6 bytes; 5 are allowed"):
        await store.stage(ArtifactUpload(name="f", filename="f", content=b"123456"))
    with pytest.raises(InvalidRequestError, match=r"artifacts\.max_bytes"):
        await store.stage(bundle(more="12"))
    with pytest.raises(InvalidRequestError, match=r"artifacts\.max_files"):
        await store.stage(bundle(a="", b=""))
    await deploy(store, bundle(more="1"))


async def test_two_deploys_of_a_bundle_at_once(
    artifacts: ArtifactStore, bundle: Any, tmp_path: Path
) -> None:
    made: list[Artifact] = []
    upload = bundle(more="x")

    async def one(name: str) -> None:
        made.append(await deploy(artifacts, attrs.evolve(upload, name=name)))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one, f"b{number}")
    assert len({artifact.digest for artifact in made}) == 1
    assert len(list((tmp_path / "artifacts/code").iterdir())) == 1
    for artifact in made:
        await artifacts.verify(artifact)


async def test_what_a_killed_node_was_unpacking_goes_with_the_next_start(
    artifacts: ArtifactStore, bundle: Any, tmp_path: Path
) -> None:
    kept = await deploy(artifacts, bundle())
    code = tmp_path / "artifacts/code"
    (code / ".new-x" / "deep").mkdir(parents=True)
    (code / ".new-x" / "deep" / "file").touch()
    (code / ".new-x" / "deep").chmod(0o500)
    ArtifactStore(tmp_path / "artifacts", warn=pytest.fail)
    assert [path.name for path in code.iterdir()] == [kept.digest]


@pytest.mark.parametrize("packed", [True, False])
async def test_a_cancelled_deploy_leaves_nothing(
    artifacts: ArtifactStore,
    bundle: Any,
    packed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload = bundle() if packed else ArtifactUpload(name="f", filename="f", content=b"code")
    scope = trio.CancelScope()
    for name in ("digest_of", "write_atomically"):
        real = getattr(_code, name)

        def cancel(*args: Any, real: Any = real, **options: Any) -> Any:
            trio.from_thread.run_sync(scope.cancel)
            return real(*args, **options)

        monkeypatch.setattr(_code, name, cancel)
    with scope:
        staged = await artifacts.stage(upload)  # a thread's work is done or not, never half
        artifacts.code.unstage(staged)
    assert scope.cancel_called
    assert list((tmp_path / "artifacts/code").iterdir()) == []
    monkeypatch.undo()
    await deploy(artifacts, upload)


async def test_a_disk_that_is_full_while_a_bundle_is_unpacked(
    artifacts: ArtifactStore, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of a file stands for the disk."""
    upload = bundle(more="x" * 100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        with pytest.raises(ArtifactError, match="'b' cannot be stored: File too large"):
            await artifacts.stage(upload)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "artifacts/code").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_bundle_on_a_disk_that_cannot_be_written(
    artifacts: ArtifactStore, bundle: Any, tmp_path: Path
) -> None:
    (tmp_path / "artifacts/code").mkdir(parents=True)
    (tmp_path / "artifacts/code").chmod(0o500)
    with pytest.raises(ArtifactError, match="'b' cannot be stored"):
        await artifacts.stage(bundle())


# --- through a node -----------------------------------------------------------------------------


def steered(name: str = "f", **settings: Any) -> ArtifactUpload:
    return ArtifactUpload(name=name, filename="f.st", content=b"code", **settings)


async def test_a_node_chooses_between_versions(open_steered_node: Any) -> None:
    async with open_steered_node() as node:
        api = node.api
        for number in range(3):
            await api.deploy(steered(env={"N": str(number)}))
        await api.set_latest("f", 2)
        response = await api.invoke(InvokeRequest(function="f"))
        assert response.task.function == "f@2"
        details = await api.get_artifact("f")
        assert (details.info.version, details.settings.env) == (2, {"N": "1"})
        assert details.info.in_use == 1  # its instance
        await api.set_artifact_state("f", 2, ArtifactState.DISABLED)
        with pytest.raises(ArtifactDisabledError):
            await api.invoke(InvokeRequest(function="f"))
        assert (await api.invoke(InvokeRequest(function="f@3"))).success


async def warm(api: NodeApi, many: int) -> None:
    """Wait until so many instances are ready, however long threads take; the clock stands still."""
    while [i.state for i in await api.list_instances()] != [InstanceState.READY] * many:
        await trio.lowlevel.checkpoint()


async def test_a_disabled_version_keeps_no_instances(
    open_steered_node: Any, runtime: Any, mock_clock: trio.testing.MockClock
) -> None:
    """Idle ones end at once, and the one that still works soon after the last queued task."""
    go_on = trio.Event()

    async def work(request: ExecutionRequest) -> ExecutionResponse:
        await go_on.wait()
        return ExecutionResponse.completed(b"")

    runtime.behaviour = work
    submit = InvokeRequest(function="f", mode=ExecutionMode.ASYNC)
    one_slot = SpearletConfig(execution=ExecutionConfig(max_concurrent_tasks=1))
    async with open_steered_node(one_slot) as node:
        api = node.api
        await api.deploy(steered(pool=PoolSettings(min_instances=3)))
        await warm(api, 3)
        queued = [(await api.invoke(submit)).task.task_id for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        await api.set_artifact_state("f", 1, ArtifactState.DISABLED)
        await trio.testing.wait_all_tasks_blocked()
        (busy,) = await api.list_instances()
        assert busy.state is InstanceState.RUNNING
        go_on.set()
        results = [(await api.get_task(task, wait=True)).result for task in queued]
        assert {result.instance_id for result in results} == {busy.instance_id}  # no fresh ones
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked()
        assert not await api.list_instances()
        assert (await api.get_artifact("f@1")).info.in_use == 0
        await api.set_artifact_state("f", 1, ArtifactState.READY)
        await warm(api, 3)


async def test_what_was_queued_for_a_disabled_version_leaves_no_instance_after_a_restart(
    open_steered_node: Any, runtime: Any, disk: Any
) -> None:
    no_grace = SpearletConfig(execution=ExecutionConfig(shutdown_grace_ms=0))
    async with open_steered_node(no_grace, disk=disk) as node:
        await node.api.deploy(steered())
        runtime.start_delay = 1e6
        task = (await node.api.invoke(InvokeRequest(function="f", mode=ExecutionMode.ASYNC))).task
        await node.api.set_artifact_state("f", 1, ArtifactState.DISABLED)
    runtime.start_delay = 0
    async with open_steered_node(disk=disk) as node:
        with trio.fail_after(60):  # an idle one would stay for five minutes
            assert (await node.api.get_task(task.task_id, wait=True)).state is TaskState.COMPLETED
            while await node.api.list_instances():  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_a_deploy_is_seen_while_its_runtime_prepares(
    open_steered_node: Any, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, go_on = trio.Event(), trio.Event()

    async def prepare(artifact: Artifact) -> None:
        runtime.context.report(artifact, "compiling")
        going.set()
        await go_on.wait()

    monkeypatch.setattr(runtime, "prepare", prepare)
    async with open_steered_node() as node, trio.open_nursery() as nursery:
        nursery.start_soon(node.api.deploy, steered())
        await going.wait()
        (info,) = await node.api.list_artifacts()
        assert (info.state, info.message) == (ArtifactState.PREPARING, "compiling")
        with pytest.raises(ArtifactNotFoundError):
            await node.api.invoke(InvokeRequest(function="f"))
        go_on.set()
    # the node is gone, and with it what it showed


async def test_a_deploy_that_cannot_work_is_refused(open_steered_node: Any) -> None:
    async with open_steered_node() as node:
        for settings, error, said in [
            ({"secrets": {"K": "key"}}, SecretNotFoundError, "wants the secret 'key' as K"),
            ({"dependencies": ("base",)}, DependencyError, "depends on 'base'"),
            ({"requirements": ("six",)}, UnsupportedArtifactError, "installs none"),
            ({"requirements": ("-r x",)}, InvalidRequestError, "options"),
            ({"env": {"A=B": "1"}}, InvalidRequestError, "'A=B'"),
            ({"env": {"A": "\0"}}, InvalidRequestError, "'A'"),
            ({"secrets": {"a-b": "key"}}, InvalidRequestError, "'a-b'"),
            ({"env": {"K": "1"}, "secrets": {"K": "key"}}, InvalidRequestError, "K is both"),
        ]:
            with pytest.raises(error, match=said):
                await node.api.deploy(steered(**settings))
        assert await node.api.list_artifacts() == []


async def test_a_deletion_tells_the_runtime_what_is_left(
    open_steered_node: Any, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []

    async def retain(artifacts: Any) -> None:
        told.append([artifact.ref for artifact in artifacts])

    monkeypatch.setattr(runtime, "retain", retain)
    async with open_steered_node() as node:
        await node.api.deploy(steered("f"))
        await node.api.deploy(steered("g"))
        await node.api.delete_artifact("f")
    assert told == [["g@1"]]


def _files_with(text: str, root: Path) -> list[Path]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


async def test_secrets_reach_the_instance_and_nothing_else(
    open_steered_node: Any,
    runtime: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    value = "open sesame, please"
    monkeypatch.setenv("THE_KEY", value)
    seen: list[str] = []
    opening = type(runtime).open_instance

    def open_instance(self: Any, spec: Any) -> Any:
        seen.append(spec.secrets["KEY"])
        self.context.log.warning("the key is %s", spec.secrets["KEY"])
        return opening(self, spec)

    async def behaviour(request: Any) -> Any:
        runtime.context.hostcalls.log(request.execution_id, f"key: {value}")
        if request.payload == b"answer":
            details = {"stderr": f"said {value}"}
            error = ErrorInfo(code="unknown", message=f"no door opens to {value}", details=details)
            return ExecutionResponse.failed(error)
        raise InstanceLostError(f"no door opens to {value}")

    monkeypatch.setattr(type(runtime), "open_instance", open_instance)
    runtime.behaviour = behaviour
    config = SpearletConfig(secrets={"key": SecretSource(env="THE_KEY")})
    async with open_steered_node(config) as node:
        for reuse in (True, False):
            upload = steered(secrets={"KEY": "key"}, reuse=reuse)
            await node.api.deploy(upload)
            for payload in (b"answer", b""):
                response = await node.api.invoke(InvokeRequest(function="f", payload=payload))
                assert not response.success
                assert "no door opens to ***" in response.message
                log = await node.api.read_log(response.task.task_id)
                assert {entry.message for entry in log.entries} == {"key: ***"}
                artifacts = [await node.api.get_artifact("f"), *await node.api.list_artifacts()]
                assert value not in repr((response, artifacts))
        assert set(seen) == {value}
        for _ in range(config.execution.circuit_failures - 1):
            await node.api.invoke(InvokeRequest(function="f"))
        with pytest.raises(CircuitOpenError, match=r"no door opens to \*\*\*"):
            await node.api.invoke(InvokeRequest(function="f"))  # told what broke last
    assert _files_with(value, tmp_path) == []
    assert "the key is ***" in (tmp_path / "state/logs/system.log").read_text()
