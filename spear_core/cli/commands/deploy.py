"""``spear deploy``."""

from __future__ import annotations

from typing import Any

import click

from spear_core.api import ArtifactInfo, ArtifactState, NodeApi
from spear_core.cli._client import ask
from spear_core.cli._listing import print_json, size
from spear_core.cli._options import DURATION, Options, common_options, json_option, pass_options
from spear_core.cli._progress import show_progress, what_is_done
from spear_core.cli._terminal import note, warn, write_line
from spear_core.cli._upload import CodeOptions, code_options, make_upload


@click.command("deploy")
@click.argument("file", metavar="[FILE[:ENTRY]]", default=".")
@click.option(
    "--name",
    "-n",
    metavar="NAME",
    default="",
    help="Default: as in spear.toml, else the file's name.",
)
@click.option(
    "--timeout", type=DURATION, metavar="TIME", help="Default deadline of its tasks: 30s, 2m."
)
@click.option(
    "--reuse/--fresh",
    default=None,
    help="Let one instance serve many calls, or make a fresh one for each. "
    "Default: as the runtime does for this kind of code.",
)
@code_options
@json_option
@common_options(node=True)
@pass_options
def command(
    options: Options,
    /,
    file: str,
    name: str,
    timeout: float | None,
    reuse: bool | None,
    as_json: bool,
    **code: Any,
) -> None:
    """Store code on a node, ready to be invoked.

    FILE is one file, or a directory with a spear.toml (default: this one), which says what belongs
    to the artifact and how it runs; options win over it. Prints NAME@VERSION. The same code with
    the same settings as the latest version is that version again.

    \b
    spear deploy
    spear deploy hello.py --name hello
    spear deploy agent.py:answer --name agent --env MODEL=small --timeout 2m
    spear deploy count.wasm --memory 64MiB
    """
    upload = make_upload(file, CodeOptions(**code), name=name, timeout_s=timeout, reuse=reuse)

    async def deploy(api: NodeApi) -> ArtifactInfo:
        text = f"deploying {upload.name} ({size(len(upload.content))})"
        async with show_progress(text, lambda: what_is_done(api, upload.name)):
            return await api.deploy(upload)

    artifact = ask(options, deploy)
    if as_json:
        print_json(artifact)
        return
    write_line(f"{artifact.name}@{artifact.version}")
    kind = f"{artifact.runtime}, {artifact.shape}"
    note(f"{artifact.filename}: {kind}, {size(artifact.size)}, sha256 {artifact.digest[:12]}")
    if artifact.state is ArtifactState.DISABLED:
        ref = f"{artifact.name}@{artifact.version}"
        warn(f"{ref} is disabled; `spear artifacts enable {ref}` lets it run")
