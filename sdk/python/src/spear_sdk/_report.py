"""Turns exceptions of guest code into what the caller and the task's log get to see."""

from __future__ import annotations

import os
import sys

from spear_sdk._errors import FunctionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import traceback

__all__ = ["error_of", "shortened", "traceback_of"]

_SDK = os.path.dirname(os.path.abspath(__file__)) + os.sep
_MACHINERY = ("asyncio", "concurrent.futures", "trio", "outcome")
_MAX_MESSAGE = 16 * 1024
_MAX_DETAIL, _MAX_DETAILS = 2048, 16
_MAX_INNER = 4


def error_of(exc: BaseException) -> dict[str, object]:
    """The error as it goes to the caller: code, message, kind and details."""
    kind = type(exc).__name__
    details: dict[str, str] = {}
    if isinstance(exc, FunctionError):
        details.update(list(exc.details.items())[:_MAX_DETAILS])
        message, code = _text_of(exc), exc.code
    else:
        message, code = "; ".join(_say(exc)), "unknown"
        if where := _where(exc):
            details["where"] = where
    return {
        "code": str(code),
        "message": shortened(message, _MAX_MESSAGE),
        "kind": kind,
        "details": {
            shortened(name, 100): shortened(value, _MAX_DETAIL) for name, value in details.items()
        },
    }


def shortened(text: object, limit: int) -> str:
    """The text, its end cut off where it has more than `limit` bytes, and fit for UTF-8."""
    data = str(text).encode(errors="backslashreplace")
    if len(data) <= limit:
        return data.decode()
    return f"{data[:limit].decode(errors='ignore')}… ({len(data) - limit} bytes cut)"


def _say(exc: BaseException) -> list[str]:
    """Class and message; of a group also those of what is in it."""
    kind, text = f"{type(exc).__name__}: ", _text_of(exc)
    # The failure of a function that was called has its class in front already; without this, a
    # chain of calls would put one more there at each level.
    said = [(text if text.startswith(kind) else kind + text).removesuffix(": ")]
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions[:_MAX_INNER]:
            said += _say(inner)
    return said


def _text_of(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # barrier: an exception class of the guest's own
        return "(its __str__ fails)"


def _where(exc: BaseException) -> str:
    """The innermost place in the guest's own code, as ``file:line in function``."""
    found = ""
    tb = exc.__traceback__
    hidden = _hidden()
    own = None
    while tb is not None:
        code = tb.tb_frame.f_code
        if not code.co_filename.startswith(hidden):
            own = own or os.path.dirname(code.co_filename)
            if os.path.dirname(code.co_filename) == own:
                found = f"{code.co_filename}:{tb.tb_lineno} in {code.co_name}"
        tb = tb.tb_next
    return found


def _hidden() -> tuple[str, ...]:
    """Where the code lives that is between the worker and the guest's function."""
    places = [_SDK]
    for name in _MACHINERY:
        path = getattr(sys.modules.get(name), "__file__", None)
        if path:
            places.append(os.path.dirname(path) + os.sep)
    return tuple(places)


def traceback_of(exc: BaseException) -> str:
    """The traceback with the guest's frames: none of the SDK's, none of the event loop's."""
    import traceback

    report = traceback.TracebackException(type(exc), exc, exc.__traceback__, compact=True)
    _trim(report, _hidden())
    if not report.stack and report.__cause__ is None and report.__context__ is None:
        return "".join(report.format_exception_only()).rstrip()
    return "".join(report.format()).rstrip()


def _trim(report: traceback.TracebackException, hidden: tuple[str, ...]) -> None:
    frames = list(report.stack)
    while frames and frames[0].filename.startswith(hidden):
        del frames[0]
    report.stack[:] = [frame for frame in frames if not frame.filename.startswith(_SDK)]
    for other in (report.__cause__, report.__context__, *(report.exceptions or ())):
        if other is not None:
            _trim(other, hidden)
