"""``spear deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spear_core.api import ArtifactInfo, NodeApi
from spear_core.cli._client import ask
from spear_core.cli._listing import print_json, size
from spear_core.cli._options import DURATION, Options, common_options, json_option, pass_options
from spear_core.cli._progress import show_progress
from spear_core.cli._terminal import note, write_line
from spear_core.cli._upload import CodeOptions, code_options, make_upload


@click.command("deploy")
@click.argument("file", metavar="FILE[:ENTRY]")
@click.option("--name", "-n", metavar="NAME", default="", help="Default: the file's, without .py.")
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
    """Store a file on a node, ready to be invoked.

    Prints NAME@VERSION. The same file with the same settings is the same version again.

    \b
    spear deploy hello.py --name hello
    spear deploy agent.py:answer --name agent --env MODEL=small --timeout 2m
    spear deploy count.wasm --memory 64MiB
    """
    upload = make_upload(file, CodeOptions(**code), name=name, timeout_s=timeout, reuse=reuse)

    async def deploy(api: NodeApi) -> ArtifactInfo:
        text = f"deploying {Path(upload.filename).name} ({size(len(upload.content))})"
        async with show_progress(text):
            return await api.deploy(upload)

    artifact = ask(options, deploy)
    if as_json:
        print_json(artifact)
        return
    write_line(f"{artifact.name}@{artifact.version}")
    kind = f"{artifact.runtime}, {artifact.shape}"
    note(f"{artifact.filename}: {kind}, {size(artifact.size)}, sha256 {artifact.digest[:12]}")
