"""The command line: presentation only, everything it does is done by the node or its clients.

Only what ``spear --help`` needs is imported here; each command's module is imported when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from spear_core.cli._errors import explain
from spear_core.cli._exit_codes import INTERRUPTED, OK
from spear_core.cli._group import cli
from spear_core.cli._options import Options
from spear_core.cli._terminal import flush_stdout

__all__ = ["cli", "main", "run"]


def main() -> NoReturn:
    """The console script ``spear``."""
    if "_SPEAR_COMPLETE" in os.environ:
        cli.main(prog_name="spear")
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are explained on stderr."""
    options = Options()
    code = OK
    try:
        try:
            with cli.make_context("spear", list(args), obj=options) as context:
                cli.invoke(context)
        except click.exceptions.Exit as leaving:
            code = leaving.exit_code
        flush_stdout()
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BaseExceptionGroup as group:
        return explain(group, debug=options.debug)
    except Exception as error:  # barrier: the user sees a line, not a traceback
        return explain(error, debug=options.debug)
    return code
