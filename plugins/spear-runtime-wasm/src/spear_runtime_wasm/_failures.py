"""What a caller is told when a guest did not end well."""

from __future__ import annotations

import re

from spear_core.api import ErrorInfo

from ._execution import Execution, ExitError, OutputLimitError
from ._ffi import Guest, GuestTrapError
from ._hostcalls import ERRNO_NAMES
from ._slice import CpuLimitError

NEARLY_FULL = 7 / 8
"""A refused `memory.grow` leaves no trace; a guest that aborts with its memory this full is taken
to have been refused, since allocators ask for more than a page at a time."""
MAX_FRAMES = 10
POOL_FULL = "maximum concurrent"
"""In wasmtime's message when every slot of the instance pool is taken."""

_POSITION = re.compile(r"\n *--> <anon>:(\d+):(\d+)")

_TEXTS = {
    "stack_overflow": "call stack exhausted",
    "memory_out_of_bounds": "out of bounds memory access",
    "heap_misaligned": "misaligned memory access",
    "table_out_of_bounds": "out of bounds table access",
    "indirect_call_to_null": "indirect call to a null table entry",
    "bad_signature": "indirect call with the wrong signature",
    "integer_overflow": "integer overflow",
    "integer_division_by_zero": "integer divide by zero",
    "bad_conversion_to_integer": "invalid conversion to integer",
    "unreachable": "unreachable code executed",
    "null_reference": "null reference",
}
_OUT_OF_MEMORY = ("unreachable", "memory_out_of_bounds")
"""How a guest ends when its allocator was refused: it aborts, or uses what it did not get."""


def exit_info(exc: ExitError, execution: Execution) -> ErrorInfo:
    tail = "\n".join(execution.stderr_tail)
    details = {"exit_code": str(exc.code)}
    if tail:
        details["stderr"] = tail
    last = f": {execution.stderr_tail[-1]}" if tail else ""
    return ErrorInfo(code="unknown", kind="exit", message=f"{exc}{last}", details=details)


def limit_info(exc: OutputLimitError | CpuLimitError) -> ErrorInfo:
    kind = "output_limit" if isinstance(exc, OutputLimitError) else "cpu_limit"
    return ErrorInfo(code="resource_exhausted", kind=kind, message=f"stopped: {exc}")


def input_info(exc: Exception) -> ErrorInfo:
    return ErrorInfo(code="resource_exhausted", kind="input_limit", message=str(exc))


def host_info(exc: Exception) -> ErrorInfo:
    message = f"a host function failed: {type(exc).__name__}: {one_line(str(exc))}"
    return ErrorInfo(code="internal", kind="host", message=message)


def errno_info(entry: str, result: int) -> ErrorInfo:
    name = ERRNO_NAMES.get(-result)
    shown = f"{result} ({name})" if name else str(result)
    details = {"errno": str(-result)}
    message = f"`{entry}` returned {shown}"
    return ErrorInfo(code="unknown", kind="errno", message=message, details=details)


def bad_result_info(entry: str, what: str) -> ErrorInfo:
    return ErrorInfo(code="unknown", kind="bad_result", message=f"`{entry}` returned {what}")


def trap_info(trap: GuestTrapError, guest: Guest, memory_limit: int) -> ErrorInfo:
    """A trap, or wasmtime's refusal to make the instance."""
    memory = guest.memory_size
    if trap.code is None:
        return _refused_info(trap, memory_limit)
    details = {"trap": trap.code, "memory_bytes": str(memory)}
    where = _where(trap, details)
    text = _TEXTS.get(trap.code, trap.message)
    if trap.code in _OUT_OF_MEMORY and memory >= memory_limit * NEARLY_FULL:
        return ErrorInfo(
            code="resource_exhausted",
            kind="out_of_memory",
            message=f"out of memory: {memory} bytes of its limit of {memory_limit} are in use;"
            f" then: {text}{where}",
            details=details,
        )
    return ErrorInfo(
        code="unknown", kind=trap.code, message=f"trap: {text}{where}", details=details
    )


def _refused_info(trap: GuestTrapError, memory_limit: int) -> ErrorInfo:
    message = one_line(trap.message)
    if "exceeds memory limits" in message:
        return ErrorInfo(
            code="resource_exhausted",
            kind="out_of_memory",
            message=f"its limit of {memory_limit} bytes is less than it starts with: {message}",
        )
    if "limit" in message:
        return ErrorInfo(code="resource_exhausted", kind="limit", message=message)
    return ErrorInfo(code="unknown", kind="link", message=message)


def _where(trap: GuestTrapError, details: dict[str, str]) -> str:
    if not trap.frames:
        return ""
    first = trap.frames[0]
    name = first.function or f"function {first.number}"
    details["function"] = name
    details["offset"] = f"{first.offset:#x}"
    details["backtrace"] = " < ".join(
        frame.function or f"function {frame.number}" for frame in trap.frames[:MAX_FRAMES]
    )
    return f" in {name}, at offset {first.offset:#x} of the module"


def one_line(text: str) -> str:
    """wasmtime writes a message and its causes on several lines, and draws where a text is bad."""
    drawn = _POSITION.search(text)
    if drawn is not None:
        line, column = drawn.groups()
        return f"line {line}, column {column}: {text[: drawn.start()].strip()}"
    lines = (line.strip() for line in text.splitlines())
    return ": ".join(line for line in lines if line and line != "Caused by:")
