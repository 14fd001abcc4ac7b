"""Code of several files, what it requires, and its secrets, in real processes."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import attrs
import pytest

from spear_core.api import Artifact, ExecutionStatus, IsolationLevel
from spear_core.errors import DependencyError, UnsupportedArtifactError
from spear_runtime_process._machine import look_around

AGENT = """
    import os, sys
    from spear_sdk import function
    import near
    from package.inner import WORD

    @function
    def main(data: bytes) -> str:
        return f"{near.WORD} {WORD} {sys.path[0] == os.environ['SPEAR_ARTIFACT_ROOT']}"
    """
NEAR = {"near.py": "WORD = 'near'", "package/__init__.py": "", "package/inner.py": "WORD = 'in'"}
LEVELS = [IsolationLevel.NONE, IsolationLevel.SYSCALLS, IsolationLevel.NAMESPACES]


@pytest.fixture
def bundle(place: Any, tmp_path: Path) -> Any:
    """Makes an artifact of several files, as the node would have stored it."""

    def make(filename: str, files: dict[str, str], **fields: Any) -> Artifact:
        root = tmp_path / "bundle"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(textwrap.dedent(text).lstrip())
            (root / name).chmod(0o400)
        for directory in (root, *(p for p in root.rglob("*") if p.is_dir())):
            directory.chmod(0o500)
        code = (root / filename).read_bytes()
        artifact = place.artifact(filename, code, **fields)
        return attrs.evolve(artifact, path=root / filename, filename=filename, root=root)

    return make


async def _skip_unless(level: IsolationLevel) -> None:
    machine = await look_around(bwrap="bwrap", use_cgroups=True)
    if missing := machine.missing_for(level):
        pytest.skip(f"no {level.name.lower()} here: {missing}")


async def output(place: Any, artifact: Artifact, **config: Any) -> str:
    response = await place.run(artifact, **config)
    assert response.status is ExecutionStatus.COMPLETED, response.error
    return str(response.payload.decode().strip())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("zygote", ["lazy", "off"])
async def test_an_agent_imports_what_is_beside_it(
    place: Any, bundle: Any, level: IsolationLevel, zygote: str
) -> None:
    await _skip_unless(level)
    artifact = bundle("agent.py", {"agent.py": AGENT, **NEAR}, required_isolation=level)
    isolation = "none" if level is IsolationLevel.NONE else "auto"
    assert await output(place, artifact, zygote=zygote, isolation=isolation) == "near in True"


async def test_an_agent_below_the_top_finds_both_directories(place: Any, bundle: Any) -> None:
    code = AGENT.replace("import near", "import near, beside")
    files = {"src/agent.py": code, "src/beside.py": "", **NEAR}
    assert await output(place, bundle("src/agent.py", files)) == "near in True"


async def test_an_agent_in_a_package_is_a_part_of_it(place: Any, bundle: Any) -> None:
    code = """
        from spear_sdk import function
        from .inner import WORD
        from . import STATE

        @function
        def main(data: bytes) -> str:
            return f"{WORD} {STATE} {__name__}"
        """
    files = {**NEAR, "package/__init__.py": "STATE = 'made'", "package/agent.py": code}
    assert await output(place, bundle("package/agent.py", files)) == "in made package.agent"


@pytest.mark.parametrize("level", LEVELS)
async def test_commands_find_what_is_beside_them(
    place: Any, bundle: Any, level: IsolationLevel
) -> None:
    await _skip_unless(level)
    code = "import near, package.inner as i; print(near.WORD, i.WORD)"
    files = {"tools/main.py": code, **NEAR}
    artifact = bundle("tools/main.py", files, required_isolation=level)
    assert await output(place, artifact) == "near in"


async def test_a_script_has_the_directory_and_works_in_its_scratch(place: Any, bundle: Any) -> None:
    script = """
        #!/bin/sh
        cat "$SPEAR_ARTIFACT_ROOT/words.txt" "$(dirname "$0")/words.txt"
        touch here && [ "$PWD" = "$HOME" ] && echo home
        """
    artifact = bundle("run.sh", {"run.sh": script, "words.txt": "w\n"})
    assert (await output(place, artifact)).split() == ["w", "w", "home"]


async def test_a_bundle_is_for_reading_only(place: Any, bundle: Any) -> None:
    machine = await look_around(bwrap="bwrap", use_cgroups=True)
    if not machine.syscalls:
        pytest.skip("nothing holds a guest of the same user here")
    code = """
        import os
        from pathlib import Path
        root = Path(os.environ["SPEAR_ARTIFACT_ROOT"])
        for attempt in (lambda: (root / "new").touch(), lambda: (root / "near.py").chmod(0o600),
                        lambda: (root / "near.py").unlink(), lambda: open(root / "near.py", "a")):
            try:
                attempt()
                print("done", end=" ")
            except PermissionError:
                print("refused", end=" ")
        """
    artifact = bundle("main.py", {"main.py": code, **NEAR})
    said = (await output(place, artifact)).split()
    # the kernel's Landlock does not know chmod: the copy is the node's own, and made anew
    assert [said[0], *said[2:]] == ["refused"] * 3
    assert artifact.root is not None
    assert (artifact.root / "near.py").stat().st_mode & 0o777 == 0o400


async def test_secrets_are_in_the_environment_of_agents_and_commands(
    place: Any, make_request: Any
) -> None:
    agent = """
        import os
        from spear_sdk import function

        @function
        def main(data: bytes) -> str:
            return os.environ["KEY"]
        """
    command = "import os; print(os.environ['KEY'])"
    for name, code in (("agent.py", agent), ("command.py", command)):
        artifact = place.artifact(name, code)
        spec = attrs.evolve(place.spec(artifact), secrets={"KEY": "s3cret"})
        async with place.open() as runtime:
            await runtime.prepare(artifact)
            async with runtime.open_instance(spec) as instance:
                response = await instance.execute(make_request())
        assert response.payload.decode().strip() == "s3cret"


USES = {
    "agent.py": """
        from spear_sdk import function
        import iniconfig

        @function
        def main(data: bytes) -> str:
            return iniconfig.__file__
        """,
    "command.py": "import iniconfig; print(iniconfig.__file__)",
}


@pytest.mark.slow
@pytest.mark.parametrize("level", [IsolationLevel.SYSCALLS, IsolationLevel.NAMESPACES])
async def test_requirements_are_installed_and_come_first(
    place: Any, context: Any, level: IsolationLevel
) -> None:
    """The real installer and a package from PyPI that is here in another version already."""
    await _skip_unless(level)
    told: list[str] = []
    context = attrs.evolve(context, report=lambda artifact, message: told.append(message))
    place = attrs.evolve(place, context=context)
    for name, code in USES.items():
        artifact = place.artifact(
            name, code, requirements=("iniconfig==1.1.1",), required_isolation=level
        )
        path = await output(place, artifact)
        assert path.startswith(str(context.cache_dir / "environments"))
    assert told[0] == "installing 1 requirement"
    assert told.count("installing 1 requirement") == 1


@pytest.mark.slow
async def test_a_requirement_that_does_not_exist_is_named(place: Any) -> None:
    wanted = "spear-no-such-package-anywhere==1.0"
    artifact = place.artifact("agent.py", USES["agent.py"], requirements=(wanted,))
    async with place.open() as runtime:
        with pytest.raises(DependencyError, match="spear-no-such-package-anywhere"):
            await runtime.prepare(artifact)


async def test_only_python_has_requirements(place: Any) -> None:
    artifact = place.artifact("run.sh", "#!/bin/sh\n", requirements=("six",))
    async with place.open() as runtime:
        with pytest.raises(UnsupportedArtifactError, match=r"run\.sh is no \.py file"):
            await runtime.prepare(artifact)
