"""``spear invoke``."""

from __future__ import annotations

from typing import Any

import attrs
import click

from spear_core.api import ExecutionMode, InvokeRequest, NodeApi, TaskInfo, TaskState
from spear_core.cli._call_options import CallOptions, call_options
from spear_core.cli._client import talk
from spear_core.cli._input import Input, input_options
from spear_core.cli._interrupt import Interrupt
from spear_core.cli._listing import print_json
from spear_core.cli._object_files import fetch_output
from spear_core.cli._options import DURATION, Options, common_options, json_option, pass_options
from spear_core.cli._streaming import stream_through
from spear_core.cli._tasks import finish, leave, state_code
from spear_core.cli._terminal import note, write_line

_MOST_INPUT = 1 << 30
"""Bytes. The node has a limit of its own, which it tells; this one saves our memory."""


@attrs.define
class _Call:
    request: InvokeRequest
    input: Input
    detach: bool
    """Ctrl-C leaves the task alone."""
    stream: bool
    as_json: bool
    task_id: str = ""

    async def __call__(self, api: NodeApi, interrupt: Interrupt) -> TaskInfo | None:
        task = None
        with interrupt.scope:
            if self.stream:
                request = attrs.evolve(self.request, content_type=self.input.content_type)
                return await stream_through(api, request, self.input)
            task = await self._invoke(api, await self._whole_request())
            return await fetch_output(api, task, as_json=self.as_json)
        if interrupt.happened:
            self._say_interrupted(task)
        return task

    async def _whole_request(self) -> InvokeRequest:
        request = attrs.evolve(self.request, content_type=self.input.content_type)
        if request.input_object:
            return request
        return attrs.evolve(request, payload=await self.input.read(_MOST_INPUT))

    async def _invoke(self, api: NodeApi, request: InvokeRequest) -> TaskInfo:
        if not self.detach:
            return (await api.invoke(request)).task
        accepted = await api.invoke(attrs.evolve(request, mode=ExecutionMode.ASYNC))
        self.task_id = accepted.task.task_id
        return await api.get_task(self.task_id, wait=True)

    def _say_interrupted(self, task: TaskInfo | None) -> None:
        if task is not None:
            note(f"interrupted; `spear result {task.task_id}` has all of its output")
        elif self.task_id:
            note(f"task {self.task_id} goes on; `spear result {self.task_id} --wait` has its end")
        else:
            note("interrupted; the task was cancelled")


def _named_object(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    if value == "":  # an unset variable of a script is no wish for an empty input
        raise click.BadParameter("an object's key has 1 to 400 bytes", ctx, param)
    return value or ""


@click.command("invoke")
@click.argument("function", metavar="NAME[@VERSION][:ENTRY]")
@input_options
@click.option(
    "--input-object",
    callback=_named_object,
    metavar="KEY",
    help="The input is this object of the node's, as it is now.",
)
@click.option(
    "--timeout",
    type=DURATION,
    metavar="TIME",
    help="Deadline, waiting in the queue included: 30s, 2m.",
)
@call_options
@click.option("--async", "no_wait", is_flag=True, help="Do not wait: print the task's id.")
@click.option(
    "--stream",
    is_flag=True,
    help="Send the input and print the output piece by piece, as they come.",
)
@click.option("--detach", is_flag=True, help="Wait, but let the task go on after Ctrl-C.")
@json_option
@common_options(node=True)
@pass_options
def command(
    options: Options,
    /,
    function: str,
    input_text: str | None,
    input_file: str | None,
    content_type: str | None,
    input_object: str,
    timeout: float | None,
    no_wait: bool,
    stream: bool,
    detach: bool,
    as_json: bool,
    **call_settings: Any,
) -> None:
    """Call a deployed function.

    Prints exactly its output. Ctrl-C cancels the task, unless --detach was given. With --json the
    whole task is printed: state, times, output, error.

    \b
    spear invoke hello --input world
    spear invoke agent@3:answer --input-file question.json --timeout 30s
    spear invoke report --priority low --idempotency-key monday --context for=ada
    spear invoke detector --input-object camera/frame
    tail -f access.log | spear invoke alerts --stream
    TASK=$(spear invoke agent --async --input hi); spear result "$TASK" --wait
    """
    if stream and (no_wait or detach or as_json):
        raise click.UsageError("--stream goes with none of --async, --detach and --json")
    if input_object and (stream or input_text is not None or input_file is not None):
        raise click.UsageError(
            "--input-object goes with none of --input, --input-file and --stream"
        )
    call = _Call(
        request=InvokeRequest(
            function=function,
            timeout_s=timeout,
            input_object=input_object,
            mode=ExecutionMode.ASYNC if no_wait else ExecutionMode.SYNC,
            **CallOptions(**call_settings).fields(),
        ),
        input=Input(input_text, input_file, content_type),
        detach=detach and not no_wait,
        stream=stream,
        as_json=as_json,
    )
    task = talk(options, call)
    assert task is not None
    if as_json:
        print_json(task)
        leave(0 if no_wait else state_code(task.state))
    elif no_wait:
        write_line(task.task_id)
    else:
        logged = task.state is not TaskState.COMPLETED
        # What a stream has put out is on stdout already; its result has none.
        leave(finish(task, hint=f"its log: spear logs {task.task_id}" if logged else ""))
