"""The plugin loader, with real distributions on ``sys.path``."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from spear_core.errors import PluginError
from spear_core.plugins import LoadedPlugin, Plugins, load_plugins, suggest_distribution

HEAD = """
import attrs
from spear_core import hookimpl
from spear_core.api import *

@attrs.frozen(kw_only=True)
class Config:
    size: int = 1

def runtime(name, **rest):
    return RuntimeSpec(
        name=name, open=print, config_cls=rest.pop("config_cls", Config),
        recognise=lambda *_: None, **rest)
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install(entry, code, …)`` makes a distribution importable, as pip would."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(
        entry: str, code: str, *, distribution: str = "", version: str = "1.2", head: str = HEAD
    ) -> None:
        distribution = distribution or f"spear-{entry}"
        module = f"planted_{distribution.replace('-', '_')}_{entry.replace('-', '_')}"
        (site / f"{module}.py").write_text(head + code)
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n\nText.\n")
        with (info / "entry_points.txt").open("a") as file:
            if file.tell() == 0:
                file.write("[spear]\n")
            file.write(f"{entry} = {module}\n")
        sys.modules.pop(module, None)

    return make


def runtimes(*specs: str) -> str:
    return f"\n@hookimpl\ndef spear_runtimes():\n    return [{', '.join(specs)}]\n"


def listed(plugins: Plugins, name: str) -> LoadedPlugin:
    (found,) = [p for p in plugins.plugins if p.name == name]
    return found


def reason(name: str) -> str:
    """Why this one did not load; the others did."""
    plugins = load_plugins()
    found = listed(plugins, name)
    assert found.state == "failed"
    assert "\n" not in found.reason
    assert found.reason in plugins.failures
    assert listed(plugins, "builtins").state == "loaded"
    return found.reason


# ---- what loads


def test_builtins_load_with_nothing_else() -> None:
    plugins = load_plugins([])
    assert listed(plugins, "builtins").distribution == "spear-core"
    assert plugins.object_stores["memory"].plugin_name == "builtins"
    assert plugins.metadata_stores["memory"].plugin_name == "builtins"
    assert "memory" in plugins.transports
    assert "local-first" in plugins.schedulers
    assert plugins.front_doors
    assert {p.state for p in plugins.plugins if p.name != "builtins"} <= {"skipped"}


def test_an_installed_plugin_is_found(install: Install) -> None:
    install("runtime-toy", runtimes('runtime("toy")', 'runtime("toy-2")'))
    plugins = load_plugins()
    assert plugins.runtimes["toy"].plugin_name == "runtime-toy"
    assert plugins.runtimes["toy"].spec.name == "toy"
    assert listed(plugins, "runtime-toy") == LoadedPlugin(
        name="runtime-toy",
        distribution="spear-runtime-toy",
        version="1.2",
        provides=("runtime:toy", "runtime:toy-2"),
    )
    (config,) = plugins.config_classes()["runtime-toy"]
    assert config.__name__ == "Config"
    assert "runtime-toy" not in plugins.inactive()


def test_every_kind_of_spec_is_taken(install: Install) -> None:
    install(
        "all-kinds",
        """
@hookimpl
def spear_transports():
    yield TransportSpec(name="t", open=print, config_cls=Config)
@hookimpl
def spear_object_stores():
    yield ObjectStoreSpec(name="o", open=print, config_cls=Config)
@hookimpl
def spear_metadata_stores():
    yield MetadataStoreSpec(name="m", open=print, config_cls=Config)
@hookimpl
def spear_schedulers():
    return None
@hookimpl
def spear_hostcalls():
    yield HostcallSpec(names=frozenset({"geo.a", "geo.b"}), open=print, config_cls=Config)
@hookimpl
def spear_front_doors():
    yield FrontDoorSpec(name="f", schemes=("f1",), open=print, connect=print, config_cls=Config)
@hookimpl
def spear_commands(cli):
    pass
""",
    )
    plugins = load_plugins()
    assert sorted(listed(plugins, "all-kinds").provides) == [
        "commands",
        "front-door:f",
        "hostcall:geo.a",
        "hostcall:geo.b",
        "metadata-store:m",
        "object-store:o",
        "transport:t",
    ]
    assert plugins.hostcalls["geo.a"].spec is plugins.hostcalls["geo.b"].spec
    assert len(plugins.config_classes()["all-kinds"]) == 1


def test_mappings_cannot_be_changed(install: Install) -> None:
    plugins = load_plugins([])
    with pytest.raises(TypeError):
        plugins.runtimes["x"] = None  # type: ignore[index]


@pytest.mark.parametrize("word", ["runtime-toy", "spear-runtime-toy", "Spear_Runtime.Toy", "toy"])
def test_only_those_asked_for_load(install: Install, word: str) -> None:
    install("runtime-toy", runtimes('runtime("toy")'))
    install("runtime-other", "raise RuntimeError('never imported')")
    plugins = load_plugins([word])
    assert set(plugins.runtimes) == {"toy"}
    assert listed(plugins, "runtime-other").state == "skipped"
    assert "runtime-other" in plugins.inactive()
    assert plugins.failures == ()


def test_a_distribution_name_means_all_its_plugins(install: Install) -> None:
    for entry in ("runtime-one", "runtime-two"):
        code = runtimes(f'runtime("{entry}")')
        install(entry, code, distribution="pair")
    assert set(load_plugins(["pair"]).runtimes) == {"runtime-one", "runtime-two"}


# ---- what is asked for and cannot be had


def test_an_unknown_name_is_fatal_and_lists_what_there_is(install: Install) -> None:
    install("runtime-toy", runtimes('runtime("toy")'))
    with pytest.raises(PluginError, match="did you mean 'runtime-toy'") as caught:
        load_plugins(["runtime-tooy"])
    assert "builtins" in caught.value.message


def test_an_unknown_name_of_ours_says_what_to_install() -> None:
    code = (
        "from spear_core.plugins import *; import importlib.metadata as m;"
        "old = m.entry_points;"
        "m.entry_points = lambda **k: [e for e in old(**k) if e.name == 'builtins'];"
        "load_plugins(['wasm'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install spear-runtime-wasm" in done.stderr


def test_an_ambiguous_name_is_fatal(install: Install) -> None:
    install("runtime-toy", runtimes('runtime("toy")'))
    install("transport-toy", runtimes('runtime("toy-t")'))
    with pytest.raises(PluginError, match="runtime-toy, transport-toy; use the full name"):
        load_plugins(["toy"])


def test_a_failing_plugin_that_was_asked_for_is_fatal(install: Install) -> None:
    install("runtime-toy", "import no_such_engine")
    with pytest.raises(PluginError, match="no_such_engine"):
        load_plugins(["toy"])


# ---- what is refused, in one line each


def test_broken_import(install: Install) -> None:
    install("runtime-toy", "import no_such_engine")
    line = reason("runtime-toy")
    assert "'runtime-toy' (spear-runtime-toy 1.2)" in line
    assert "ModuleNotFoundError: No module named 'no_such_engine'" in line


def test_import_that_exits(install: Install) -> None:
    install("runtime-toy", "raise SystemExit(3)")
    assert "SystemExit: 3" in reason("runtime-toy")


def test_syntax_error(install: Install) -> None:
    install("runtime-toy", "def broken(:")
    assert "SyntaxError" in reason("runtime-toy")


def test_one_name_in_two_distributions_names_both(install: Install) -> None:
    install("runtime-toy", runtimes('runtime("a")'), distribution="first", version="1.0")
    install("runtime-toy", runtimes('runtime("b")'), distribution="second", version="2.0")
    plugins = load_plugins()
    assert plugins.runtimes.keys().isdisjoint({"a", "b"})
    failed = [p for p in plugins.plugins if p.name == "runtime-toy"]
    assert [p.state for p in failed] == ["failed", "failed"]
    for plugin in failed:
        assert "first 1.0" in plugin.reason
        assert "second 2.0" in plugin.reason
    with pytest.raises(PluginError, match="more than one distribution"):
        load_plugins(["runtime-toy"])


def test_nobody_takes_the_place_of_the_builtins(install: Install) -> None:
    install("builtins", runtimes('runtime("evil")'), distribution="impostor")
    plugins = load_plugins()
    assert "memory" in plugins.object_stores
    assert "evil" not in plugins.runtimes
    (impostor,) = [p for p in plugins.plugins if p.distribution == "impostor"]
    assert impostor.state == "failed"


def test_misspelt_hook_suggests_the_nearest(install: Install) -> None:
    install("runtime-toy", runtimes('runtime("toy")').replace("runtimes(", "runtime("))
    assert "no hook 'spear_runtime'; did you mean 'spear_runtimes'?" in reason("runtime-toy")


def test_unmarked_hook(install: Install) -> None:
    install("runtime-toy", runtimes('runtime("toy")').replace("@hookimpl", ""))
    assert "spear_runtimes is not marked; put above it @hookimpl" in reason("runtime-toy")


def test_no_hook_at_all(install: Install) -> None:
    install("runtime-toy", "")
    assert "has no hook" in reason("runtime-toy")


@pytest.mark.parametrize("body", ["return []", "yield None"])
def test_async_hook(install: Install, body: str) -> None:
    install("runtime-toy", f"\n@hookimpl\nasync def spear_runtimes():\n    {body}\n")
    assert "the hook spear_runtimes is async" in reason("runtime-toy")


@pytest.mark.parametrize("option", ["wrapper=True", "hookwrapper=True"])
def test_wrapper_hook(install: Install, option: str) -> None:
    install("runtime-toy", f"\n@hookimpl({option})\ndef spear_runtimes():\n    yield\n")
    assert "the hook spear_runtimes is a wrapper" in reason("runtime-toy")


def test_wrong_arguments(install: Install) -> None:
    install("runtime-toy", "\n@hookimpl\ndef spear_runtimes(node):\n    return []\n")
    line = reason("runtime-toy")
    assert "node" in line
    assert "spear_runtimes" in line


@pytest.mark.parametrize("api", ["2", "99"])
def test_too_new_interface_says_both_sides(install: Install, api: str) -> None:
    install("runtime-toy", runtimes(f'runtime("toy", api={api})'))
    line = reason("runtime-toy")
    assert f"'toy' for interface version {api}, and this spear-core speaks 1" in line


@pytest.mark.parametrize("api", ["0", "True", "'1'", "None"])
def test_interface_version_that_is_none(install: Install, api: str) -> None:
    install("runtime-toy", runtimes(f'runtime("toy", api={api})'))
    assert "which is no version" in reason("runtime-toy")


def test_wrong_type_of_spec(install: Install) -> None:
    install("runtime-toy", runtimes('{"name": "toy"}'))
    assert "spear_runtimes returned a dict where a RuntimeSpec belongs" in reason("runtime-toy")


def test_spec_that_is_not_in_a_list(install: Install) -> None:
    code = '\n@hookimpl\ndef spear_runtimes():\n    return runtime("toy")\n'
    install("runtime-toy", code)
    assert "returned one RuntimeSpec; yield it or return a list" in reason("runtime-toy")


@pytest.mark.parametrize("name", ["''", "None", "5"])
def test_spec_without_a_name(install: Install, name: str) -> None:
    install("runtime-toy", runtimes(f"runtime({name})"))
    assert "returned a RuntimeSpec without a name" in reason("runtime-toy")


def test_config_class_that_is_none(install: Install) -> None:
    install("runtime-toy", runtimes('runtime("toy", config_cls=dict)'))
    assert "config_cls=<class 'dict'>, which is no attrs class" in reason("runtime-toy")


@pytest.mark.parametrize("how", ["raise OSError('no luck\\nat all')", "yield 1 / 0"])
def test_hook_that_raises(install: Install, how: str) -> None:
    install("runtime-toy", f"\n@hookimpl\ndef spear_runtimes():\n    {how}\n")
    assert "the hook spear_runtimes raised" in reason("runtime-toy")


def test_two_plugins_with_one_runtime(install: Install) -> None:
    install("runtime-one", runtimes('runtime("toy")'))
    install("runtime-two", runtimes('runtime("fine")', 'runtime("toy")'))
    line = reason("runtime-two")
    assert "the runtime 'toy' is already provided by plugin 'runtime-one'" in line
    plugins = load_plugins()
    assert plugins.runtimes["toy"].plugin_name == "runtime-one"
    assert "fine" not in plugins.runtimes, "a plugin is taken whole or not at all"
    assert load_plugins(["runtime-two"]).runtimes["toy"].plugin_name == "runtime-two"


def test_one_plugin_with_a_runtime_twice(install: Install) -> None:
    install("runtime-one", runtimes('runtime("toy")', 'runtime("toy")'))
    assert "already provided by plugin itself" in reason("runtime-one")


def test_two_front_doors_for_one_scheme(install: Install) -> None:
    for name in ("door-a", "door-b"):
        install(
            name,
            f"\n@hookimpl\ndef spear_front_doors():\n    yield FrontDoorSpec(name={name!r}, "
            "schemes=('toy',), open=print, connect=print, config_cls=Config)\n",
        )
    assert "the front door for the URL scheme 'toy' is already provided" in reason("door-b")


# ---- hooks that are called later


def chooser(result: str) -> str:
    return f"\n@hookimpl\ndef spear_choose_transport(runtime, offered):\n    {result}\n"


def test_nobody_chooses_a_transport() -> None:
    assert load_plugins([]).choose_transport("process", ["unix", "tcp"]) is None


def test_the_first_opinion_on_a_transport_counts(install: Install) -> None:
    install("a-silent", chooser("return None"))
    install("b-wilful", chooser("return 'tcp' if runtime == 'process' else None"))
    plugins = load_plugins(["a-silent", "b-wilful"])
    assert plugins.choose_transport("process", ["unix", "tcp"]) == "tcp"
    assert plugins.choose_transport("other", ["unix", "tcp"]) is None


def test_choosing_what_is_not_offered_is_an_error(install: Install) -> None:
    install("wilful", chooser("return 'pigeon'"))
    with pytest.raises(PluginError, match=r"'wilful' chose the transport 'pigeon'.*unix, tcp"):
        load_plugins(["wilful"]).choose_transport("process", ["unix", "tcp"])


def test_a_chooser_that_raises_is_an_error(install: Install) -> None:
    install("wilful", chooser("return 1 / 0"))
    with pytest.raises(PluginError, match="spear_choose_transport raised ZeroDivisionError"):
        load_plugins(["wilful"]).choose_transport("process", ["unix"])


def test_a_hook_may_take_fewer_arguments(install: Install) -> None:
    code = "\n@hookimpl\ndef spear_choose_transport(offered):\n    return offered[-1]\n"
    install("short", code)
    assert load_plugins(["short"]).choose_transport("process", ["unix", "tcp"]) == "tcp"


def commands(*lines: str) -> str:
    body = "\n    ".join(lines)
    return f"\nimport click\n@hookimpl\ndef spear_commands(cli):\n    {body}\n"


def test_commands_are_added(install: Install) -> None:
    install("greeter", commands("cli.command('hello')(lambda: click.echo('hi'))"))
    cli = click.Group("spear")
    assert load_plugins(["greeter"]).add_commands(cli) == ()
    assert set(cli.commands) == {"hello"}


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ("raise OSError('no')", "spear_commands raised OSError: no"),
        ("cli.command('run')(lambda: None)", "replaces the command 'run'"),
        ("del cli.commands['run']", "replaces the command 'run'"),
    ],
)
def test_a_plugin_that_spoils_the_commands_adds_none(
    install: Install, last: str, line: str
) -> None:
    install("spoiler", commands("cli.command('hello')(lambda: None)", last))
    cli = click.Group("spear")
    run = cli.command("run")(lambda: None)
    (problem,) = load_plugins(["spoiler"]).add_commands(cli)
    assert line in problem
    assert cli.commands == {"run": run}


# ---- the rest


@pytest.mark.parametrize(
    ("what", "distribution"),
    [
        ("agent.py", "spear-runtime-process"),
        (Path("/x/run.SH"), "spear-runtime-process"),
        ("process", "spear-runtime-process"),
        ("x.wasm", "spear-runtime-wasm"),
        (Path("x.wat"), "spear-runtime-wasm"),
        ("wasm", "spear-runtime-wasm"),
        ("tcp", "spear-transport-unix"),
        ("README.md", None),
        ("", None),
    ],
)
def test_suggested_distribution(what: str | Path, distribution: str | None) -> None:
    assert suggest_distribution(what) == distribution


def test_loading_is_quick() -> None:
    load_plugins([])
    best = min(_timed() for _ in range(10))
    assert best < 0.05, "scanning and loading the builtins takes 5 ms on a laptop"


def _timed() -> float:
    begun = time.thread_time()  # what others do meanwhile is not counted
    load_plugins([])
    return time.thread_time() - begun


def test_loading_imports_nothing_heavy() -> None:
    code = "import sys; from spear_core.plugins import load_plugins; load_plugins([]);"
    code += "print([m for m in ('cattrs', 'rich', 'email.parser', 'pytest') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = done.stdout.strip()
    assert heavy in ("[]", "['email.parser']"), "importlib.metadata imports email by itself"
