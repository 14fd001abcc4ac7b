"""``spear.toml``: what it says, which files it takes, and everything that can be wrong with it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from spear_core._file_patterns import matcher
from spear_core._spec_file import load_spec
from spear_core.api import (
    ArtifactUpload,
    IsolationLevel,
    Limits,
    ObjectGrants,
    PoolSettings,
    Resources,
    RetryPolicy,
)
from spear_core.errors import ConfigError

Load = Callable[[str], ArtifactUpload]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory as people have them."""
    root = tmp_path / "my project"
    for path in (
        *("agent.py", "README.md", "package/__init__.py", "package/part.py"),
        *("tests/test_it.py", "data/words.txt", "package/__pycache__/part.cpython-311.pyc"),
        *(".env", ".git/config", "venv/pyvenv.cfg", "venv/lib/x.py", "node_modules/x.js"),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


@pytest.fixture
def load(project: Path) -> Load:
    def load_it(text: str) -> ArtifactUpload:
        (project / "spear.toml").write_text(text)
        return load_spec(project / "spear.toml")

    return load_it


def problems(load: Load, text: str) -> list[str]:
    with pytest.raises(ConfigError) as info:
        load(text)
    for problem in info.value.problems:
        assert problem in str(info.value)
    return list(info.value.problems)


def names(upload: ArtifactUpload) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(upload.content)) as archive:
        return archive.namelist()


def test_the_least(load: Load) -> None:
    upload = load('file = "agent.py"')
    assert (upload.name, upload.filename, upload.bundle) == ("my-project", "agent.py", True)
    assert names(upload) == [
        *("README.md", "agent.py", "data/words.txt", "package/__init__.py", "package/part.py"),
        "tests/test_it.py",
    ]


def test_everything(load: Load, project: Path) -> None:
    (project / "requirements.txt").write_text("six==1.16\nattrs # again\n")
    upload = load(
        """
        name = "answers"
        file = "package/part.py"
        entry = "main"
        runtime = "process"
        include = ["package", "data/*.txt"]
        exclude = ["__init__.py"]
        env = { MODEL = "small" }
        secrets = { KEY = "openai" }
        args = ["-x"]
        isolation = "syscalls"
        timeout = "2m"
        reuse = false
        idempotent = true
        concurrency = 3
        max_concurrent = 4
        weight = 2
        requirements = ["attrs", "humanize>=4"]
        requirements_file = "requirements.txt"
        dependencies = ["other", "more@2"]
        limits = { memory = "64MiB", cpu_seconds = 1.5, open_files = 9, processes = 8, output = 7 }
        resources = { cpu = 0.5, memory = "1GiB" }
        retry = { attempts = 5, initial_backoff = "50ms", max_backoff = 3, jitter = 0 }
        pool = { min_instances = 1, max_instances = 2 }
        """
    )
    assert names(upload) == ["data/words.txt", "package/part.py"]
    assert (upload.name, upload.filename, upload.entry) == ("answers", "package/part.py", "main")
    assert (upload.runtime, upload.args, upload.reuse) == ("process", ("-x",), False)
    assert (upload.env, upload.secrets) == ({"MODEL": "small"}, {"KEY": "openai"})
    assert upload.limits == Limits(
        memory_bytes=64 << 20, cpu_seconds=1.5, open_files=9, processes=8, output_bytes=7
    )
    assert upload.resources == Resources(cpu=0.5, memory_bytes=1 << 30)
    assert upload.required_isolation is IsolationLevel.SYSCALLS
    assert (upload.timeout_s, upload.idempotent) == (120.0, True)
    assert upload.retry == RetryPolicy(
        attempts=5, initial_backoff_s=0.05, max_backoff_s=3.0, jitter=0.0
    )
    assert (upload.max_concurrent, upload.concurrency, upload.weight) == (4, 3, 2.0)
    assert upload.pool == PoolSettings(min_instances=1, max_instances=2)
    assert upload.requirements == ("attrs", "humanize>=4", "six==1.16")
    assert upload.dependencies == ("other", "more@2")


def test_a_file_alone_goes_as_it_is(load: Load, project: Path) -> None:
    (project / "package" / "part.py").chmod(0o755)
    upload = load('file = "package/part.py"\ninclude = []')
    assert (upload.content, upload.bundle, upload.executable) == (b"package/part.py", False, True)
    assert upload.filename == "part.py"


def test_every_mistake_is_found_at_once(load: Load) -> None:
    found = problems(
        load,
        """
        name = "my answers"
        file = "nothing.py"
        timout = "2m"
        timeout = "soon"
        isolation = "total"
        concurrency = 0
        env = { "a-b" = "1", KEY = "2" }
        secrets = { KEY = "openai" }
        requirements = ["fine", "-r x"]
        requirements_file = "nothing.txt"
        dependencies = ["a b"]
        limits = { memory = "64Xi", cpu = 3 }
        retry = { jitter = 2 }
        reuse = "yes"
        """,
    )
    places = sorted(problem.partition(":")[0] for problem in found)
    assert places == sorted(
        [
            *("concurrency", "dependencies[0]", "env", "file", "isolation", "limits.cpu"),
            *("limits.memory", "name", "requirements[1]", "requirements_file", "retry.jitter"),
            *("reuse", "secrets.KEY", "timeout", "timout"),
        ]
    )
    assert "timout: unknown key; did you mean 'timeout'?" in found
    assert "file: nothing.py: no such file" in found


def test_no_file(load: Load) -> None:
    assert problems(load, "") == ["file: required, and not set: the file to run"]
    assert problems(load, "file = 3") == ["file: expected str, got int"]


@pytest.mark.parametrize("bad", ["../up.py", "/etc/passwd", "./agent.py", "package//part.py"])
def test_a_file_elsewhere(load: Load, bad: str) -> None:
    assert problems(load, f'file = "{bad}"') == [
        "file: expected a path below the directory of spear.toml"
    ]


def test_patterns_that_are_wrong_or_match_nothing(load: Load) -> None:
    text = 'file = "agent.py"\ninclude = ["*.rs", "../x", "package"]\nexclude = ["/x"]'
    assert problems(load, text) == [
        "exclude[0]: '/x': expected a pattern for paths below the directory of spear.toml",
        "include[1]: '../x': expected a pattern for paths below the directory of spear.toml",
        "include[0]: '*.rs' matches no file",
    ]


def test_links_do_not_bring_in_what_lies_elsewhere(load: Load, project: Path) -> None:
    (project / "passwd").symlink_to("/etc/passwd")
    (project / "etc").symlink_to("/etc")
    (project / "same.py").symlink_to("agent.py")
    found = problems(load, 'file = "agent.py"')
    assert [problem.partition(",")[0] for problem in found] == [
        "include: etc is a symbolic link to a directory",
        "include: passwd is a symbolic link to outside of the directory",
    ]
    upload = load('file = "agent.py"\nexclude = ["etc", "passwd"]')
    with zipfile.ZipFile(io.BytesIO(upload.content)) as archive:
        assert archive.read("same.py") == b"agent.py"


def test_a_file_that_is_no_toml(load: Load, project: Path) -> None:
    assert "is not valid TOML" in problems(load, "file =")[0]
    (project / "spear.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_spec(project / "spear.toml")
    with pytest.raises(ConfigError, match="No such file"):
        load_spec(project / "other.toml")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.py", "a.py", True),
        ("*.py", "b/a.py", True),
        ("*.py", "a.pyc", False),
        ("b/*.py", "b/a.py", True),
        ("b/*.py", "c/b/a.py", False),
        ("b/*.py", "b/c/a.py", False),
        ("b/**/*.py", "b/c/d/a.py", True),
        ("b/**/*.py", "b/a.py", True),
        ("**/a.py", "a.py", True),
        ("b/**", "b/c/d", True),
        ("b", "b/c/d", True),
        ("b/", "b/c/d", True),
        ("./b/c", "b/c/d", True),
        ("b", "bc", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a.c", "abc", False),
        ("**", "any/thing", True),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    assert bool(matcher(pattern).fullmatch(path)) is matches


def test_grants_of_objects(load: Load) -> None:
    upload = load(
        'file = "agent.py"\n[objects]\nread = ["producer/frames/", ""]\nwrite = ["shared/"]\n'
    )
    assert upload.objects == ObjectGrants(read=("producer/frames/", ""), write=("shared/",))


def test_grants_that_would_mean_something_else_are_all_named(load: Load) -> None:
    table = '[objects]\nread = ["producer", "/x/"]\nwrite = [".spear/"]\nown = 1\n'
    assert problems(load, f'file = "agent.py"\n{table}') == [
        "objects.own: unknown key",
        "objects.read: 'producer' would be the objects of every artifact whose name begins so: "
        "write 'producer/'; '/x/' has a '/' before it: write 'x/'",
        "objects.write: '.spear/' is the node's own, and nobody else's",
    ]
