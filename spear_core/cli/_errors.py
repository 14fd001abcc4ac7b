"""What a user sees of an error: what happened, to what, and what to do."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from typing import Any

import click

from spear_core.cli._exit_codes import (
    BROKEN_PIPE,
    INTERNAL,
    INTERRUPTED,
    PRECONDITION,
    USAGE,
    exit_code,
)
from spear_core.cli._terminal import OutputClosedError, OutputFailedError, error
from spear_core.errors import ChannelCreationError, ConfigError, SpearError

__all__ = ["InterruptedBySignalError", "explain"]


_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""Since click 8.2; before, it printed the help itself."""


class InterruptedBySignalError(Exception):
    """SIGINT or SIGTERM ended the command in order; what there is to say has been said."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc


def explain(exc: BaseException, *, debug: bool) -> int:
    """Say on stderr what ``exc`` means and return the exit code; quiet for a reader that left."""
    leaves = list(_leaves(exc))
    for leaf in leaves:
        if isinstance(leaf, OutputClosedError):
            return BROKEN_PIPE
        if isinstance(leaf, InterruptedBySignalError):
            return 128 + leaf.number
        if isinstance(leaf, KeyboardInterrupt):
            return INTERRUPTED
    if debug:
        traceback.print_exception(exc, file=sys.stderr)
    codes = [_explain_one(leaf) for leaf in leaves]
    return codes[0] if len(set(codes)) == 1 else INTERNAL


def _explain_one(exc: BaseException) -> int:
    if isinstance(exc, click.ClickException):
        return _explain_usage(exc)
    if isinstance(exc, SpearError):
        error(_full_message(exc))
        return exit_code(exc.code)
    if isinstance(exc, OutputFailedError):
        error(str(exc))
        return INTERNAL
    if isinstance(exc, PermissionError):
        error(f"{exc.filename or 'permission'}: {exc.strerror}")
        return PRECONDITION
    if isinstance(exc, OSError) and exc.filename:
        error(f"{exc.filename}: {exc.strerror}")
        return INTERNAL
    error(
        f"internal error: {type(exc).__name__}: {exc}\n"
        "This is a bug in SPEAR or in a plugin; --debug shows where."
    )
    return INTERNAL


def _explain_usage(exc: click.ClickException) -> int:
    if isinstance(exc, _NO_ARGUMENTS):  # a group without a command: its help is what to do
        click.echo(exc.format_message(), err=True)
        return USAGE
    error(exc.format_message())
    if isinstance(exc, click.UsageError) and exc.ctx is not None:
        click.echo(f"try: {exc.ctx.command_path} --help", err=True)
    return USAGE


def _full_message(exc: SpearError) -> str:
    """The message, and those details of it that are not in it yet."""
    extra: list[str] = []
    if isinstance(exc, ConfigError):
        extra = [line for line in exc.problems if line not in exc.message]
    elif isinstance(exc, ChannelCreationError):
        extra = [f"{name}: {why}" for name, why in exc.failures if why not in exc.message]
    return "\n  ".join([exc.message, *extra])
