"""gRPC's C-core, loaded the way a trio program needs it.

Everything that is private to grpcio is named here and in the two modules beside it, and nowhere
else. ``cygrpc`` is what grpcio's own synchronous stack stands on; the names used have been the same
since 1.60, and :mod:`~spear_transport_grpc._bridge._check` tries them before anything relies on
them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from spear_core.errors import RuntimeUnavailableError

__all__ = ["NO_FLAGS", "SUPPORTED", "cygrpc", "unsupported"]

SUPPORTED = "grpcio>=1.60,<2"
NO_FLAGS = 0
_ENVIRON = {"GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "NONE"}
"""With fork handlers a child made by ``os.fork`` crashes now and then under load; and C-core writes
lines of its own to stderr. It reads both once."""
_NAMES = (
    "Channel",
    "CompletionQueue",
    "CompletionType",
    "ReceiveCloseOnServerOperation",
    "ReceiveInitialMetadataOperation",
    "ReceiveMessageOperation",
    "ReceiveStatusOnClientOperation",
    "SendCloseFromClientOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "Server",
    "auth_context",
)


@contextmanager
def _environment() -> Iterator[None]:
    """Our settings while C-core starts; children see the environment as it was."""
    before = {name: os.environ.get(name) for name in _ENVIRON}
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = _ENVIRON["GRPC_ENABLE_FORK_SUPPORT"]
    os.environ.setdefault("GRPC_VERBOSITY", _ENVIRON["GRPC_VERBOSITY"])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def unsupported(reason: str) -> RuntimeUnavailableError:
    """The error for a grpcio that we cannot drive."""
    try:
        version = importlib.import_module("grpc").__version__
    except Exception:  # barrier: a grpcio that does not even load
        version = "that is installed"
    return RuntimeUnavailableError(
        f"grpcio {version} cannot be used: {reason}; install another with"
        f" `pip install '{SUPPORTED}'`",
        retryable=False,
    )


def _load() -> ModuleType:
    with _environment():
        try:
            module = importlib.import_module("grpc._cython.cygrpc")
        except ImportError as error:
            raise unsupported(f"it does not load ({error})") from error
        missing = [name for name in _NAMES if not hasattr(module, name)]
        if missing:
            raise unsupported(f"it has no {', '.join(missing)}")
        queue = module.CompletionQueue()  # starts C-core, which reads the environment now
        queue.shutdown()
        while queue.poll().completion_type != module.CompletionType.queue_shutdown:
            pass
    return module


cygrpc = _load()
