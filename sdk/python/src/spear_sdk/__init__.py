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
from spear_sdk._errors import (
    FunctionError,
    HostcallError,
    InvalidInputError,
    ObjectConflictError,
    ObjectForbiddenError,
    ObjectNotFoundError,
    StoreFullError,
    TaskCancelledError,
)
from spear_sdk._function import function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from spear_sdk._logging import LogHandler
    from spear_sdk._object_files import ObjectReader, ObjectWriter
    from spear_sdk._objects import Check, Delete, Objects, Put
    from spear_sdk._stored import ObjectStat, StoredObject

__version__ = "0.1.0"

__all__ = [
    "Check",
    "Context",
    "Delete",
    "FunctionError",
    "HostcallError",
    "InvalidInputError",
    "Log",
    "LogHandler",
    "ObjectConflictError",
    "ObjectForbiddenError",
    "ObjectNotFoundError",
    "ObjectReader",
    "ObjectStat",
    "ObjectWriter",
    "Objects",
    "Put",
    "StartedCall",
    "StoreFullError",
    "StoredObject",
    "TaskCancelledError",
    "current_context",
    "function",
]

_LATE = {  # most functions have no use for these, and the logging package is slow to import
    "LogHandler": "_logging",
    **dict.fromkeys(("Check", "Delete", "Objects", "Put"), "_objects"),
    **dict.fromkeys(("ObjectReader", "ObjectWriter"), "_object_files"),
    **dict.fromkeys(("ObjectStat", "StoredObject"), "_stored"),
}


def __getattr__(name: str) -> object:
    if name in _LATE:
        from importlib import import_module

        return getattr(import_module(f"spear_sdk.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
