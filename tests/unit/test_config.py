"""Reading the configuration file."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from attrs import validators

from spear_core.api import ExecutionConfig, SpearletConfig
from spear_core.config import NodeSettings, load_config
from spear_core.errors import ConfigError
from spear_core.plugins import load_plugins


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen(kw_only=True)
class Inner:
    depth: int = attrs.field(default=1, validator=validators.gt(0))
    names: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Toy:
    memory_mib: int = attrs.field(default=64, validator=validators.ge(1))
    ratio: float = 0.5
    network: bool = True
    title: str = ""
    limit: int | None = None
    mixed: int | str = 0
    color: Color = Color.RED
    mode: Literal["fast", "safe"] = "safe"
    folder: Path = Path("/tmp")
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    pair: tuple[int, str] = (1, "a")
    words: Sequence[str] = ()
    tags: frozenset[str] = frozenset()
    env: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Other:
    port: int = attrs.field(default=80, validator=validators.in_((80, 443)))
    title: str = "other"


@attrs.frozen(kw_only=True)
class Needy:
    token: str
    size: int = attrs.field(default=1, validator=validators.gt(0))


@attrs.frozen(kw_only=True)
class Range:
    low: int = 0
    high: int = 10

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is over high")


@attrs.frozen
class Source:
    """Stands for the loaded plugins."""

    classes: Mapping[str, tuple[type[Any], ...]] = attrs.field(factory=dict)
    idle: Mapping[str, str] = attrs.field(factory=dict)

    def config_classes(self) -> Mapping[str, tuple[type[Any], ...]]:
        return self.classes

    def inactive(self) -> Mapping[str, str]:
        return self.idle


TOY = Source({"runtime-toy": (Toy,)})


def read(tmp_path: Path, text: str, source: Source = TOY) -> NodeSettings:
    path = tmp_path / "node.toml"
    path.write_text(text, "utf-8")
    return load_config(path, source)


def toy(tmp_path: Path, text: str) -> Toy:
    return read(tmp_path, f"[plugins.runtime-toy]\n{text}").plugin_config("runtime-toy", Toy)


def problems(tmp_path: Path, text: str, source: Source = TOY) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, source)
    for line in caught.value.problems:
        assert line in caught.value.message
    assert str(tmp_path / "node.toml") in caught.value.message
    return list(caught.value.problems)


def toy_problem(tmp_path: Path, text: str) -> str:
    (line,) = problems(tmp_path, f"[plugins.runtime-toy]\n{text}")
    return line.removeprefix("plugins.runtime-toy.")


# ---- what is right


def test_no_file_gives_every_default() -> None:
    settings = load_config(None, TOY)
    assert settings.spearlet == SpearletConfig()
    assert settings.plugin_config("runtime-toy") == Toy()
    assert settings.path is None


def test_an_empty_file_does_too(tmp_path: Path) -> None:
    assert read(tmp_path, "").spearlet == SpearletConfig()


def test_the_nodes_own_settings(tmp_path: Path) -> None:
    text = "[execution]\nmax_concurrent_tasks = 7\n[logs]\nlevel = 'debug'\n"
    settings = read(tmp_path, text)
    assert settings.spearlet.execution.max_concurrent_tasks == 7
    assert settings.spearlet.execution.max_queued_tasks == 10_000
    assert settings.spearlet.logs.level == "debug"
    assert settings.path == tmp_path / "node.toml"


def test_every_type_of_setting(tmp_path: Path) -> None:
    text = """
memory_mib = 1
ratio = 2
network = false
title = "x"
limit = 5
mixed = "text"
color = "blue"
mode = "fast"
folder = "/srv"
inner = { depth = 2, names = ["a", "b"] }
several = [{ depth = 3 }, {}]
pair = [2, "b"]
words = ["w"]
tags = ["t", "t"]
env = { A = "1" }
"""
    assert toy(tmp_path, text) == Toy(
        memory_mib=1,
        ratio=2.0,
        network=False,
        title="x",
        limit=5,
        mixed="text",
        color=Color.BLUE,
        mode="fast",
        folder=Path("/srv"),
        inner=Inner(depth=2, names=("a", "b")),
        several=(Inner(depth=3), Inner()),
        pair=(2, "b"),
        words=("w",),
        tags=frozenset({"t"}),
        env={"A": "1"},
    )


# ---- what is wrong with one value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("memory_mib = '1'", "memory_mib: expected int, got str"),
        ("memory_mib = true", "memory_mib: expected int, got bool"),
        ("memory_mib = 1.0", "memory_mib: expected int, got float"),
        ("memory_mib = 0", "memory_mib: must be >= 1: 0"),
        ("memory_mib = { a = 1 }", "memory_mib: expected int, got a table"),
        ("network = 1", "network: expected bool, got int"),
        ("title = 1", "title: expected str, got int"),
        ("title = 2026-01-01", "title: expected str, got date"),
        ("limit = 'x'", "limit: expected int, got str"),
        ("color = 'green'", "color: must be one of 'red', 'blue', got 'green'"),
        ("folder = 1", "folder: expected str, got int"),
        ("inner = 1", "inner: expected a table, got int"),
        ("inner.depth = 0", "inner.depth: must be > 0: 0"),
        ("inner.names = 'ab'", "inner.names: expected a list, got str"),
        ("inner.names = ['a', 1]", "inner.names[1]: expected str, got int"),
        ("inner.dept = 1", "inner.dept: unknown key; did you mean 'depth'?"),
        ("several = [{}, { depth = 'x' }]", "several[1].depth: expected int, got str"),
        ("pair = [1]", "pair: expected 2 values, got 1"),
        ("pair = [1, 2]", "pair[1]: expected str, got int"),
        ("env = { A = 1 }", "env.A: expected str, got int"),
        ("env = { 'a b' = 1 }", 'env."a b": expected str, got int'),
        ("env = []", "env: expected a table, got list"),
        ("memori_mib = 1", "memori_mib: unknown key; did you mean 'memory_mib'?"),
        ("zzz = 1", "zzz: unknown key"),
        ("climb = 1", "climb: unknown key"),  # two thirds of "limit"
    ],
)
def test_one_wrong_value(tmp_path: Path, text: str, problem: str) -> None:
    assert toy_problem(tmp_path, text) == problem


@pytest.mark.parametrize("text", ["mode = 'slow'", "mixed = [1]"])
def test_wrong_choices_name_the_value(tmp_path: Path, text: str) -> None:
    name, _, value = text.partition(" = ")
    line = toy_problem(tmp_path, text)
    assert line.startswith(f"{name}: ")
    assert value.strip("'") in line


# ---- what is wrong altogether


def test_everything_is_reported_at_once(tmp_path: Path) -> None:
    text = """
colour = 1
[execution]
max_concurrent_tasks = 0
task_timeout_ms = "long"
[pol]
[plugins.runtime-toy]
memory_mib = 0
ratio = "x"
inner = { depth = 0, names = [1] }
[plugins.runtime-other]
port = 1
title = 2
[plugins.runtime-toi]
"""
    source = Source({"runtime-toy": (Toy,), "runtime-other": (Other,)})
    assert sorted(problems(tmp_path, text, source)) == [
        "colour: unknown key",
        "execution.max_concurrent_tasks: must be > 0: 0",
        "execution.task_timeout_ms: expected int, got str",
        "plugins.runtime-other.port: must be in (80, 443) (got 1)",
        "plugins.runtime-other.title: expected str, got int",
        "plugins.runtime-toi: no such plugin is installed; did you mean 'runtime-toy'?",
        "plugins.runtime-toy.inner.depth: must be > 0: 0",
        "plugins.runtime-toy.inner.names[0]: expected str, got int",
        "plugins.runtime-toy.memory_mib: must be >= 1: 0",
        "plugins.runtime-toy.ratio: expected float, got str",
        "pol: unknown key; did you mean 'pool'?",
    ]


def test_a_missing_setting_is_required(tmp_path: Path) -> None:
    source = Source({"needy": (Needy,)})
    assert problems(tmp_path, "", source) == ["plugins.needy.token: required, and not set"]
    with pytest.raises(ConfigError, match="default configuration is not valid"):
        load_config(None, source)
    assert sorted(problems(tmp_path, "[plugins.needy]\nsize = 'x'", source)) == [
        "plugins.needy.size: expected int, got str",
        "plugins.needy.token: required, and not set",
    ]
    assert problems(tmp_path, "[plugins.needy]\nsize = 0\ntoken = 'x'", source) == [
        "plugins.needy.size: must be > 0: 0"
    ]
    found = read(tmp_path, "[plugins.needy]\ntoken = 'x'", source)
    assert found.plugin_config("needy") == Needy(token="x")


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    source = Source({"range": (Range,)})
    text = "[plugins.range]\nlow = 8\nhigh = 5"
    assert problems(tmp_path, text, source) == ["plugins.range: low is over high"]
    assert read(tmp_path, "[plugins.range]\nlow = 8", source).plugin_config("range").low == 8


def test_settings_that_go_together_only_together(tmp_path: Path) -> None:
    """``low`` alone would be over the default of ``high``; both are fine."""
    source = Source({"range": (Range,)})
    found = read(tmp_path, "[plugins.range]\nlow = 20\nhigh = 30", source)
    assert found.plugin_config("range") == Range(low=20, high=30)


@pytest.mark.parametrize("value", ["1", "[]", "'x'"])
def test_sections_are_tables(tmp_path: Path, value: str) -> None:
    kind = {"1": "int", "[]": "list", "'x'": "str"}[value]
    text = f"pool = {value}\nplugins = {value}\n"
    assert problems(tmp_path, text) == [
        f"pool: expected a table, got {kind}",
        f"plugins: expected a table, got {kind}",
    ]
    text = f"plugins.runtime-toy = {value}\n"
    assert problems(tmp_path, text) == [f"plugins.runtime-toy: expected a table, got {kind}"]


# ---- plugins with several classes, or none


def test_several_classes_share_a_section(tmp_path: Path) -> None:
    source = Source({"both": (Toy, Other)})
    text = "[plugins.both]\nmemory_mib = 2\nport = 443\ntitle = 'shared'\n"
    settings = read(tmp_path, text, source)
    assert settings.plugin_config("both", Toy) == Toy(memory_mib=2, title="shared")
    assert settings.plugin_config("both", Other) == Other(port=443, title="shared")
    with pytest.raises(LookupError, match="has 2 configuration classes"):
        settings.plugin_config("both")


def test_a_shared_key_is_reported_once(tmp_path: Path) -> None:
    source = Source({"both": (Toy, Other)})
    text = "[plugins.both]\ntitle = 1\nmemori_mib = 1\n"
    assert problems(tmp_path, text, source) == [
        "plugins.both.memori_mib: unknown key; did you mean 'memory_mib'?",
        "plugins.both.title: expected str, got int",
    ]


def test_a_plugin_without_settings(tmp_path: Path) -> None:
    source = Source({"plain": ()})
    assert read(tmp_path, "[plugins.plain]\n", source)
    assert problems(tmp_path, "[plugins.plain]\nx = 1\n", source) == [
        "plugins.plain.x: this plugin has no settings"
    ]


def test_the_section_of_an_idle_plugin_is_left_alone(tmp_path: Path) -> None:
    source = Source({}, {"runtime-idle": "skipped"})
    settings = read(tmp_path, "[plugins.runtime-idle]\nwhatever = 1\n", source)
    with pytest.raises(LookupError):
        settings.plugin_config("runtime-idle")


def test_the_builtins_have_their_section(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[plugins.builtins]\nmemory_store_bytes = 5\n")
    plugins = load_plugins([])
    settings = load_config(path, plugins)
    spec = plugins.object_stores["memory"].spec
    assert settings.plugin_config("builtins", spec.config_cls).memory_store_bytes == 5


# ---- files that cannot be read


def unreadable(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, TOY)
    assert str(path) in caught.value.message
    assert len(caught.value.problems) == 1
    return caught.value.message


def test_no_such_file(tmp_path: Path) -> None:
    assert "No such file" in unreadable(tmp_path / "absent.toml")


def test_a_directory(tmp_path: Path) -> None:
    assert "Is a directory" in unreadable(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.toml"
    path.touch(mode=0o000)
    assert "Permission denied" in unreadable(path)


def test_invalid_toml_says_where(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[pool]\nmax_instances = = 1\n")
    assert "is not valid TOML" in unreadable(path)
    assert "line 2, column 17" in unreadable(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"x = '\xff'")
    assert "is not UTF-8 (byte 5)" in unreadable(path)


# ---- cost


def test_cattrs_is_imported_only_when_there_is_something_to_read(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[pool]\nmax_instances = 2\n")
    code = """
import sys
from pathlib import Path
from spear_core.config import load_config
from spear_core.plugins import load_plugins
plugins = load_plugins([])
load_config(None, plugins)
print("cattrs" in sys.modules)
load_config(Path(sys.argv[1]), plugins)
print("cattrs" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_no_input_may_be_larger_than_what_carries_it() -> None:
    with pytest.raises(ValueError, match="max_input_bytes"):
        ExecutionConfig(max_input_bytes=(64 << 20) + 1)
