"""Write functions and agents for SPEAR in Python.

::

    from spear_sdk import function

    @function
    def greet(name: str) -> str:
        return f"Hello, {name}!"
"""

from __future__ import annotations

from spear_sdk._calls import StartedCall
from spear_sdk._context import Context, Log, current_context
from spear_sdk._errors import FunctionError, HostcallError, InvalidInputError, TaskCancelledError
from spear_sdk._function import function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from spear_sdk._logging import LogHandler

__version__ = "0.1.0"

__all__ = [
    "Context",
    "FunctionError",
    "HostcallError",
    "InvalidInputError",
    "Log",
    "LogHandler",
    "StartedCall",
    "TaskCancelledError",
    "current_context",
    "function",
]


def __getattr__(name: str) -> object:
    if name == "LogHandler":  # late: the logging package is slow to import
        from spear_sdk._logging import LogHandler

        return LogHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
