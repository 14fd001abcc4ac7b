"""Installed requirements, with an installer that a test can steer, and once with the real one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from spear_core.api import Artifact
from spear_core.errors import DependencyError, RuntimeFault
from spear_runtime_process._config import ProcessConfig
from spear_runtime_process._environments import Environments, find_uv

INSTALLER = """#!{python}
import os, pathlib, sys, time
here = pathlib.Path({folder!r})
arguments = dict(zip(sys.argv[3::1], sys.argv[4::1]))
target = pathlib.Path(arguments["--target"])
with open(here / "runs", "a") as runs:
    print(os.getpid(), *sys.argv[1:], file=runs)
print("Resolved 1 package", file=sys.stderr, flush=True)
target.mkdir()
(target / "half").touch()
while (here / "wait").exists():
    time.sleep(0.01)
if (here / "fail").exists():
    sys.exit("error: no version of nosuch-package was found")
(target / "installed.py").write_text(pathlib.Path(arguments["-r"]).read_text())
"""


@attrs.define
class Desk:
    """A cache, and an installer that does what the files beside it say."""

    folder: Path
    said: list[str] = attrs.field(factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "cache"

    def open(self, node_id: str = "n-1", **config: Any) -> closing[Environments]:
        settings = ProcessConfig(uv=str(self.folder / "uv"), **config)
        return closing(Environments(self.root, settings, node_id=node_id))

    def artifact(self, *requirements: str) -> Artifact:
        return Artifact(
            name="f",
            version=1,
            digest="0" * 64,
            runtime="process",
            shape="agent",
            path=Path("/f"),
            filename="f",
            requirements=requirements,
        )

    async def provide(self, environments: Environments, *requirements: str) -> Path:
        await environments.provide(self.artifact(*requirements), self.said.append)
        site = environments.site(requirements)
        assert site is not None
        return site

    def runs(self) -> list[list[str]]:
        path = self.folder / "runs"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    async def wait_for_run(self) -> int:
        """The installer's process id, once it has begun."""
        with trio.fail_after(60):
            while not self.runs() or not list(self.root.glob(".new-*/site/half")):
                await trio.sleep(0.01)
        return int(self.runs()[-1][0])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    script = tmp_path / "uv"
    script.write_text(INSTALLER.format(python=sys.executable, folder=str(tmp_path)))
    script.chmod(0o755)
    yield Desk(tmp_path)
    (tmp_path / "wait").unlink(missing_ok=True)


async def test_installed_once_and_used_again(desk: Desk) -> None:
    with desk.open() as environments:
        site = await desk.provide(environments, "b>=1", "a")
        assert (site / "installed.py").read_text() == "a\nb>=1\n"
        assert desk.said == ["installing 2 requirements", "Resolved 1 package"]
        assert await desk.provide(environments, "a", "b>=1", "a") == site
    with desk.open() as later:
        assert await desk.provide(later, "a", "b>=1") == site
        assert len(desk.runs()) == 1
        assert await desk.provide(later, "a") != site
        assert len(desk.runs()) == 2


async def test_what_decides_about_the_content_decides_about_the_place(desk: Desk) -> None:
    with (
        desk.open() as one,
        desk.open(index_url="http://x") as two,
        desk.open(build_requirements=True) as three,
    ):
        assert len({e.site(("a",)) for e in (one, two, three)}) == 3
        assert one.site(()) is None
        assert one.site(("spear-sdk", "Spear_SDK>=0.1")) is None
        assert one.site(("a", "spear-sdk")) == one.site(("a",))


async def test_the_installer_is_told_to_build_nothing_unless_it_may(desk: Desk) -> None:
    with desk.open(index_url="http://mirror/simple") as environments:
        await desk.provide(environments, "a")
    with desk.open(build_requirements=True) as environments:
        await desk.provide(environments, "a")
    careful, building = desk.runs()
    assert "--no-build" in careful
    assert careful[careful.index("--default-index") + 1] == "http://mirror/simple"
    assert "--no-build" not in building
    assert "--default-index" not in building


async def test_a_failure_has_the_installers_words_and_leaves_nothing(desk: Desk) -> None:
    (desk.folder / "fail").touch()
    with desk.open() as environments:
        with pytest.raises(DependencyError, match=r"(?s)f@1.*no version of nosuch-package"):
            await desk.provide(environments, "nosuch-package")
        assert [path.suffix for path in desk.root.iterdir()] == [".lock"]
        (desk.folder / "fail").unlink()
        assert (await desk.provide(environments, "nosuch-package")).exists()


async def test_no_installer(desk: Desk) -> None:
    (desk.folder / "uv").unlink()
    with (
        desk.open() as environments,
        pytest.raises(RuntimeFault, match="be started"),
    ):
        await desk.provide(environments, "a")


async def test_a_cancelled_install_ends_and_is_never_taken_for_whole(desk: Desk) -> None:
    (desk.folder / "wait").touch()
    with desk.open() as environments:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.provide, environments, "a")
            pid = await desk.wait_for_run()
            nursery.cancel_scope.cancel()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert not list(desk.root.glob(".new-*"))
        (desk.folder / "wait").unlink()
        site = await desk.provide(environments, "a")
        assert (site / "installed.py").exists()


async def test_what_a_killed_node_left_half_made_is_made_anew(desk: Desk) -> None:
    with desk.open() as environments:
        site = environments.site(("a",))
        assert site is not None
        half = desk.root / f".new-{site.parent.name}"
        (half / "site").mkdir(parents=True)
        (half / "site" / "stale.py").touch()
        await desk.provide(environments, "a")
        assert not (site / "stale.py").exists()
        assert not half.exists()


async def test_two_nodes_at_once_install_once(desk: Desk) -> None:
    (desk.folder / "wait").touch()
    with desk.open("n-1") as one, desk.open("n-2") as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.provide, one, "a")
            await desk.wait_for_run()
            nursery.start_soon(desk.provide, two, "a")
            with trio.fail_after(60):
                while not any("somebody else" in line for line in desk.said):
                    await trio.sleep(0.01)
            (desk.folder / "wait").unlink()
        assert len(desk.runs()) == 1
        users = sorted(p.name for p in desk.root.glob("*/users/*"))
        assert users == ["n-1", "n-2"]


async def test_an_installer_that_outlives_its_node_keeps_the_others_away(desk: Desk) -> None:
    (desk.folder / "wait").touch()
    program = (
        "import sys, trio; from pathlib import Path; from test_environments import Desk\n"
        "desk = Desk(Path(sys.argv[1]))\n"
        "with desk.open('n-0') as e: trio.run(desk.provide, e, 'a')"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    node = await trio.lowlevel.open_process(
        [sys.executable, "-c", program, str(desk.folder)], env=env
    )
    orphan = await desk.wait_for_run()
    node.kill()
    await node.wait()
    os.kill(orphan, 0)
    with desk.open() as environments:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.provide, environments, "a")
            with trio.fail_after(60):
                while not any("somebody else" in line for line in desk.said):
                    await trio.sleep(0.01)
            assert len(desk.runs()) == 1
            os.kill(orphan, signal.SIGKILL)
            with trio.fail_after(60):
                while len(desk.runs()) < 2:
                    await trio.sleep(0.01)
            (desk.folder / "wait").unlink()
        assert (environments.site(("a",)) or Path()).joinpath("installed.py").exists()


async def test_what_no_artifact_needs_is_removed(desk: Desk) -> None:
    with desk.open() as environments:
        a, b = await desk.provide(environments, "a"), await desk.provide(environments, "b")
        await environments.retain([desk.artifact("a"), desk.artifact()])
        assert a.exists()
        assert not b.parent.exists()
        assert (await desk.provide(environments, "b")).exists()


async def test_what_another_node_needs_stays(desk: Desk) -> None:
    with desk.open("n-2") as other:
        site = await desk.provide(other, "a")
    with desk.open("n-1") as environments:
        await desk.provide(environments, "a")
        await environments.retain([])
        assert site.exists()  # n-2 has stopped, and has said that it needs it
        with desk.open("n-2") as other:
            await desk.provide(other, "a")
            await environments.retain([])
            assert site.exists()
            await other.retain([])
            assert not site.exists()


async def test_what_another_node_uses_right_now_stays(desk: Desk) -> None:
    with desk.open("n-1") as environments, desk.open("") as once:
        site = await desk.provide(environments, "a")
        await desk.provide(once, "a")
        await environments.retain([])
        assert site.exists()


async def test_a_node_that_will_not_come_back_leaves_a_cache_and_no_mark(desk: Desk) -> None:
    with desk.open("") as once:
        site = await desk.provide(once, "a")
    assert list((site.parent / "users").iterdir()) == []
    with desk.open("n-1") as environments:
        await environments.retain([])
        assert site.exists()


async def test_what_nobody_has_used_for_long_is_removed(desk: Desk) -> None:
    with desk.open("n-gone") as environments:
        site = await desk.provide(environments, "a")
    with desk.open() as environments:
        await environments.retain([])
        assert site.exists()
        (lock,) = desk.root.glob("*.lock")
        then = time.time() - 31 * 86400
        os.utime(lock, (then, then))
        await environments.retain([])
        assert not site.exists()
        assert list(desk.root.iterdir()) == []


def test_the_installer_is_named(desk: Desk) -> None:
    with desk.open() as environments:
        assert environments.installer() == f"installed with {desk.folder}/uv"


def test_uv_comes_with_this_distribution() -> None:
    assert os.access(find_uv(""), os.X_OK)
    assert find_uv("/opt/uv") == "/opt/uv"
