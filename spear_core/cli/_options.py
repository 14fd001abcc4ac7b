"""Options that many commands share, and the types of values people write on a command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from spear_core._quantities import parse_duration, parse_size

__all__ = [
    "DURATION",
    "SIZE",
    "Options",
    "common_options",
    "json_option",
    "pass_options",
    "setup_options",
]

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    _NamesType = click.ParamType[Sequence[str]]
    _FloatType = click.ParamType[float]
    _IntType = click.ParamType[int]
else:  # generic since click 8.2 only
    _NamesType = _FloatType = _IntType = click.ParamType


@dataclass
class Options:
    """What every command may need. A dataclass: attrs would double the time to the help text."""

    state_dir: Path | None = None
    node: str | None = None
    debug: bool = False


pass_options = click.make_pass_decorator(Options, ensure=True)


def _store(context: click.Context, parameter: click.Parameter, value: object) -> None:
    """Keep a shared option that was given, before or after the command; the later one counts, and
    one that was typed counts more than one from the environment."""
    if not value or not parameter.name:
        return
    options = context.ensure_object(Options)
    typed = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    if typed or not getattr(options, parameter.name):
        setattr(options, parameter.name, value)


def common_options(*, node: bool = False) -> Callable[[F], F]:
    """``--state-dir`` and ``--debug``, which go before the command or after it.

    :param node: ``--node`` as well: the command talks to a running node.
    """

    def decorate(command: F) -> F:
        if node:
            command = click.option(
                "--node",
                metavar="URL",
                envvar="SPEAR_NODE",
                show_envvar=True,
                expose_value=False,
                callback=_store,
                help="The node to talk to. Default: the one on the state directory.",
            )(command)
        command = click.option(
            "--state-dir",
            metavar="DIR",
            type=click.Path(file_okay=False, path_type=Path),
            expose_value=False,
            callback=_store,
            help="Where the node keeps its state. Default: SPEAR_STATE_DIR, "
            "else ~/.local/state/spear.",
        )(command)
        return click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            callback=_store,
            help="Show the traceback of an error.",
        )(command)

    return decorate


def json_option(command: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


class _Names(_NamesType):
    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Sequence[str]:
        names = [name.strip() for name in str(value).split(",") if name.strip()]
        if not names:
            self.fail("name at least one plugin, or leave the option out", param, ctx)
        return names


def setup_options(command: F) -> F:
    """``--config`` and ``--plugins``: for a command that opens a node of its own."""
    command = click.option(
        "--plugins",
        "only",
        metavar="A,B",
        type=_Names(),
        help="Load only these plugins. Default: all that are installed.",
    )(command)
    return config_option(command)


def config_option(command: F) -> F:
    """``--config``."""
    return click.option(
        "--config",
        metavar="FILE",
        envvar="SPEAR_CONFIG",
        show_envvar=True,
        type=click.Path(path_type=Path),
        help="Settings, as TOML. Default: ~/.config/spear/config.toml if it exists.",
    )(command)


class _Duration(_FloatType):
    """Seconds, from ``1.5``, ``500ms``, ``30s``, ``2m`` or ``1h``."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Size(_IntType):
    """Bytes, from ``1000``, ``64MiB``, ``64M`` (the same) or ``64MB`` (decimal)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = _Duration()
SIZE = _Size()
