"""``spear new``."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path

import attrs
import click

from spear_core.cli._options import common_options
from spear_core.cli._terminal import note, write_line


@attrs.frozen
class _Template:
    about: str
    next: tuple[str, ...]


_ZIG = "python -m ziglang build-exe main.zig -target wasm32-freestanding -fno-entry -rdynamic"

_TEMPLATES: Mapping[str, _Template] = {
    "function": _Template("a Python function", ("spear run main.py --input world",)),
    "agent": _Template("a Python agent with a spear.toml", ("spear run --input Ada",)),
    "command": _Template("a shell script", ('spear run main.sh --input "to be or not to be"',)),
    "wasm-c": _Template(
        "a C program as WebAssembly",
        (
            "python -m ziglang cc --target=wasm32-wasi -O2 -s main.c -o main.wasm",
            'spear run main.wasm --input "to be or not to be"',
        ),
    ),
    "wasm-zig": _Template(
        "a zig function as WebAssembly",
        (f"{_ZIG} -O ReleaseSmall", "spear run main.wasm --input raed"),
    ),
    "wat": _Template("WebAssembly as text", ('spear run main.wat --input "to be or not to be"',)),
}
"""Each is a directory of ``spear_core/cli/templates``; its files end in ``.in``."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _list_templates(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        for name, template in _TEMPLATES.items():
            write_line(f"{name:<10} {template.about}")
        context.exit()


@click.command("new")
@click.argument("template", type=click.Choice(list(_TEMPLATES)), metavar="TEMPLATE")
@click.argument("directory", metavar="NAME", type=click.Path(path_type=Path))
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_templates,
    help="List the templates.",
)
@common_options()
def command(template: str, directory: Path) -> None:
    """Start a project from a template.

    Makes the directory NAME with the code and a README that says how to build and run it.

    \b
    function   a Python function
    agent      a Python agent with a spear.toml: limits, a pool, grants
    command    a shell script
    wasm-c     a C program, compiled to WebAssembly
    wasm-zig   a zig function, compiled to WebAssembly
    wat        WebAssembly as text

    \b
    spear new function hello
    spear new wasm-c count
    """
    if not _NAME.fullmatch(directory.name):
        raise click.UsageError(
            f"{directory.name!r} is no name for an artifact: use up to 100 letters, digits, "
            "'-', '_' and '.', and begin with a letter or digit"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise click.UsageError(f"{directory} exists already and is not empty")
    directory.mkdir(parents=True, exist_ok=True)
    source = importlib.resources.files("spear_core.cli") / "templates" / template
    for name in sorted(_write(file, directory) for file in source.iterdir()):
        write_line(str(directory / name))
    note("\n".join(["next:", *(f"  {line}" for line in _steps(directory, template))]))


def _steps(directory: Path, template: str) -> list[str]:
    return [f"cd {directory}", *_TEMPLATES[template].next]


def _write(file: Traversable, directory: Path) -> str:
    """Fill in one file of a template; a script is made executable."""
    text = file.read_text(encoding="utf-8").replace("@NAME@", directory.name)
    path = directory / file.name.removesuffix(".in")
    with path.open("x", encoding="utf-8") as made:
        made.write(text)
    if text.startswith("#!"):
        path.chmod(0o755)
    return path.name
