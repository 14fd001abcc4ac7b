"""``spear run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from spear_core.api import ArtifactUpload, ExecutionMode, InvokeRequest, NodeApi, TaskInfo
from spear_core.cli._client import state_dir
from spear_core.cli._input import Input, input_options
from spear_core.cli._interrupt import watch_interrupts
from spear_core.cli._options import (
    DURATION,
    Options,
    common_options,
    pass_options,
    setup_options,
)
from spear_core.cli._progress import show_progress, what_is_done
from spear_core.cli._setup import load, show_log
from spear_core.cli._streaming import stream_through
from spear_core.cli._tasks import copy_log, finish, leave, log_to_stderr
from spear_core.cli._terminal import note
from spear_core.cli._upload import CodeOptions, code_options, make_upload
from spear_core.config import NodeSettings
from spear_core.node import open_node
from spear_core.plugins import Plugins

_STOPPING_S = 10.0


@attrs.frozen(kw_only=True)
class _Job:
    upload: ArtifactUpload
    input: Input
    timeout_s: float | None
    stream: bool


@click.command("run")
@click.argument("file", metavar="[FILE[:ENTRY]]", default=".")
@input_options
@click.option("--timeout", type=DURATION, metavar="TIME", help="Stop it after this long: 30s, 2m.")
@click.option(
    "--stream",
    is_flag=True,
    help="Send the input and print the output piece by piece, as they come.",
)
@code_options
@setup_options
@common_options()
@pass_options
def command(
    options: Options,
    /,
    file: str,
    input_text: str | None,
    input_file: str | None,
    content_type: str | None,
    timeout: float | None,
    stream: bool,
    config: Path | None,
    only: Sequence[str] | None,
    **code: Any,
) -> None:
    """Run code once, here and now, without a node.

    FILE is one file, or a directory with a spear.toml (default: this one). It says what it is: a
    Python function or agent, a script or program, a WASM module (.wasm, .wat). Its output, and
    nothing else, goes to stdout; its log goes to stderr while it runs. Ctrl-C stops it.

    \b
    spear run hello.py --input world
    spear run agent.py:answer --input-file question.json --timeout 30s
    cat words.txt | spear run count.wasm --memory 64MiB
    spear run report.sh --env LANG=C --arg --short --isolation syscalls
    """
    job = _Job(
        upload=make_upload(file, CodeOptions(**code)),
        input=Input(input_text, input_file, content_type),
        timeout_s=timeout,
        stream=stream,
    )
    settings, plugins = load(config, only)
    with show_log("WARNING"):
        task = trio.run(_run, job, settings, plugins, state_dir(options))
    leave(finish(task))


async def _run(job: _Job, settings: NodeSettings, plugins: Plugins, state: Path) -> TaskInfo:
    limit = settings.spearlet.execution.max_input_bytes
    async with watch_interrupts() as interrupt:
        async with open_node(
            settings, plugins, state_dir=state, serve=False, ephemeral=True
        ) as node:
            with interrupt.scope:
                name = job.upload.name
                text = f"preparing {job.upload.filename}"
                async with show_progress(text, lambda: what_is_done(node.api, name)):
                    artifact = await node.api.deploy(job.upload)
                request = InvokeRequest(
                    function=f"{artifact.name}@{artifact.version}",
                    payload=b"" if job.stream else await job.input.read(limit),
                    content_type=job.input.content_type,
                    mode=ExecutionMode.ASYNC,
                    timeout_s=job.timeout_s,
                )
                if job.stream:
                    task = await stream_through(node.api, request, job.input, show_log=True)
                else:
                    task = await _follow(node.api, request)
            if interrupt.happened:
                note(f"interrupted; {job.upload.filename} was stopped")
        interrupt.check()
    return task


async def _follow(api: NodeApi, request: InvokeRequest) -> TaskInfo:
    """Run it to its end with its log on stderr; when cancelled, stop it first."""
    task_id = (await api.invoke(request)).task.task_id
    try:
        await copy_log(api, task_id, log_to_stderr, follow=True)
        return await api.get_task(task_id, wait=True)
    except trio.Cancelled:
        with trio.move_on_after(_STOPPING_S, shield=True):
            await api.cancel_task(task_id, reason="interrupted")
        raise
