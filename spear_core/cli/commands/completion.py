"""``spear completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from spear_core.cli._options import common_options
from spear_core.cli._terminal import write_line


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options()
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    spear completion bash > ~/.local/share/bash-completion/completions/spear
    spear completion zsh  > ~/.zfunc/_spear       (with fpath+=~/.zfunc in ~/.zshrc)
    spear completion fish > ~/.config/fish/completions/spear.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    script = found(context.find_root().command, {}, "spear", "_SPEAR_COMPLETE").source()
    write_line(script.rstrip("\n"))
