"""Hostcalls: what the platform offers to running code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import attrs

from spear_core.api._plugin import PluginContext

__all__ = ["HostcallContext", "HostcallProvider", "HostcallSpec"]

C = TypeVar("C")


@attrs.frozen(kw_only=True)
class HostcallContext:
    """Who calls."""

    execution_id: str
    task_id: str
    artifact: str
    """``name@version``."""


class HostcallProvider(ABC):
    """Answers the hostcalls of one family."""

    @abstractmethod
    async def call(self, caller: HostcallContext, name: str, payload: bytes) -> bytes:
        """Answer one call; any number run at the same time.

        :param name: one of the names in the spec. :param payload: as the guest sent it, of a form
            that the hostcall defines.

        **Raises** a :exc:`~spear_core.errors.SpearError`, which the guest sees with code and
        message; anything else is logged and reaches the guest as ``internal``. **Cancellation**:
        the caller's execution has ended; stop.
        """


@attrs.frozen(kw_only=True)
class HostcallSpec(Generic[C]):
    """Declares hostcalls; returned by the hook ``spear_hostcalls``."""

    names: frozenset[str]
    """Every name it answers, written ``family.verb``."""
    open: Callable[[PluginContext, C], AbstractAsyncContextManager[HostcallProvider]]
    config_cls: type[C]
    api: int = 1
