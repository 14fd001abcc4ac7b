"""How a function is called, beside its input: the options of ``spear invoke``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import click

from spear_core.api import Priority

__all__ = ["CallOptions", "call_options"]

F = TypeVar("F", bound=Callable[..., Any])


def _context(ctx: click.Context, param: click.Parameter, pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{pair!r}: write K=V", ctx, param)
        found[key] = value
    return found


@attrs.frozen(kw_only=True)
class CallOptions:
    """The parameters that :func:`call_options` adds."""

    priority: Priority
    idempotency_key: str
    context: dict[str, str]
    caller: str

    def fields(self) -> dict[str, Any]:
        """Those of an :class:`~spear_core.api.InvokeRequest`."""
        return attrs.asdict(self, recurse=False)


def call_options(command: F) -> F:
    """``--priority``, ``--idempotency-key``, ``--context`` and ``--caller``."""
    options = [
        click.option(
            "--priority",
            type=click.Choice([priority.name.lower() for priority in Priority]),
            default="normal",
            show_default=True,
            callback=lambda ctx, param, value: Priority[value.upper()],
            help="Who goes first when tasks wait.",
        ),
        click.option(
            "--idempotency-key",
            default="",
            metavar="KEY",
            help="The same key with the same input is the same task, also when it is sent again.",
        ),
        click.option(
            "--context",
            multiple=True,
            metavar="K=V",
            callback=_context,
            help="A short fact for the function, beside its input. Repeatable.",
        ),
        click.option(
            "--caller",
            default="",
            metavar="NAME",
            help="Whose limits count. Default: your user id, as the node sees it.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
