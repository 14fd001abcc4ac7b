"""Showing a task: its log as it comes, its output, how it failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from spear_core.api import LogEntry, NodeApi, TaskInfo, TaskState
from spear_core.cli._exit_codes import FAILED, INTERRUPTED, OK, PRECONDITION, TIMED_OUT
from spear_core.cli._terminal import error, note, on_terminal, visible, write_bytes

__all__ = [
    "copy_log",
    "finish",
    "format_entry",
    "leave",
    "log_to_stderr",
    "not_final",
    "state_code",
]

_EXIT = {
    TaskState.COMPLETED: OK,
    TaskState.FAILED: FAILED,
    TaskState.CANCELLED: INTERRUPTED,
    TaskState.TIMEOUT: TIMED_OUT,
}
_STREAMS = ("stdout", "stderr")


def leave(code: int) -> None:
    """End the command with this exit code unless it is 0."""
    if code != OK:
        raise click.exceptions.Exit(code)


def state_code(state: TaskState) -> int:
    """The exit code for a final state."""
    return _EXIT[state]


async def copy_log(
    api: NodeApi, task_id: str, write: Callable[[LogEntry], None], *, follow: bool
) -> None:
    """Give every entry of a task's log to ``write``; with ``follow``, until the task is final."""
    cursor = 0
    while True:
        chunk = await api.read_log(task_id, cursor=cursor, wait=follow)
        for entry in chunk.entries:
            write(entry)
        if chunk.finished or not (follow or chunk.entries):
            return
        cursor = chunk.cursor


def format_entry(entry: LogEntry, *, times: bool = False, terminal: bool = False) -> str:
    """A stream's line as the guest wrote it; each line of anything else with its level."""
    before = "" if entry.source in _STREAMS else f"{entry.level}: "
    if times:
        clock = time.strftime("%H:%M:%S", time.localtime(entry.ts))
        before = f"{clock}.{int(entry.ts % 1 * 1000):03d} {before}"
    text = "\n".join(before + line for line in entry.message.split("\n"))
    return visible(text) if terminal else text


def log_to_stderr(entry: LogEntry) -> None:
    """Show an entry while its task runs."""
    note(format_entry(entry, terminal=on_terminal(sys.stderr)))


def finish(task: TaskInfo, *, hint: str = "") -> int:
    """Write a final task's output to stdout, or say on stderr how it failed; the exit code.

    :param hint: what to do next when it failed.
    """
    result = task.result
    if task.state is TaskState.COMPLETED:
        write_bytes(result.output if result else b"")
        return OK
    said = result.error if result else None
    message = said.message if said else f"the task ended as {task.state.value}"
    code = said.details.get("exit_code", "") if said else ""
    if code and code not in message:
        message = f"{message} (exit code {code})"
    if task.attempt > 1:
        message = f"{message} (attempt {task.attempt})"
    verb = {TaskState.CANCELLED: "was cancelled", TaskState.TIMEOUT: "ran out of time"}
    if not message.startswith(task.function):
        message = f"{task.function} {verb.get(task.state, 'failed')}: {message}"
    text = visible(message)
    error(f"{text}\n{hint}" if hint else text)
    return _EXIT[task.state]


def not_final(task: TaskInfo) -> int:
    """Say that a task has no result yet; the exit code."""
    error(f"task {task.task_id} is {task.state.value}; --wait waits for its result")
    return PRECONDITION
