"""Event loops for async functions. Each lives as long as the worker, so connections can too."""

from __future__ import annotations

import asyncio
import threading

from spear_sdk._errors import FunctionError, TaskCancelledError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any

    import trio

    from spear_sdk._execution import Execution


__all__ = ["AsyncioBackend", "TrioBackend"]


class AsyncioBackend:
    """One asyncio loop, on the main thread."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        asyncio.set_event_loop(self._loop)

    def run(self, awaitable: Awaitable[Any], execution: Execution) -> object:
        """Wait for it. Raises: what it raises, TaskCancelledError when that is why it ended."""
        task = self._loop.create_task(_as_coroutine(awaitable))
        cancelled = False

        def cancel() -> None:
            nonlocal cancelled
            cancelled = True
            self._loop.call_soon_threadsafe(task.cancel)

        execution.on_cancel(cancel)
        try:
            return self._loop.run_until_complete(task)
        except asyncio.CancelledError:
            if cancelled:
                raise TaskCancelledError("the task was cancelled") from None
            raise
        finally:
            if task.done() and not task.cancelled():
                task.exception()  # seen: asyncio need not warn

    def idle(self, descriptor: int) -> None:
        """Let tasks that functions have left behind go on until there is something to read."""
        if asyncio.all_tasks(self._loop):
            self._loop.add_reader(descriptor, self._loop.stop)
            self._loop.run_forever()
            self._loop.remove_reader(descriptor)

    def close(self) -> None:
        """Cancel what is left and end."""
        self._runner.close()


async def _as_coroutine(awaitable: Awaitable[Any]) -> object:
    return await awaitable


class TrioBackend:
    """One trio run, on a thread of its own, where it also serves background tasks.

    Raises: FunctionError when trio is not installed.
    """

    def __init__(self) -> None:
        try:
            import trio
        except ModuleNotFoundError as exc:
            raise FunctionError(
                "the function asks for backend='trio', and trio is not installed here",
                code="failed_precondition",
            ) from exc
        self._trio = trio
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self._token = self._trio.lowlevel.current_trio_token()
        self._stop = self._trio.Event()
        self._ready.set()
        await self._stop.wait()

    def run(self, awaitable: Awaitable[Any], execution: Execution) -> object:
        """Wait for it. Raises: what it raises, TaskCancelledError when that is why it ended."""
        return self._trio.from_thread.run(self._run, awaitable, execution, trio_token=self._token)

    async def _run(self, awaitable: Awaitable[Any], execution: Execution) -> object:
        with self._trio.CancelScope() as scope:
            execution.on_cancel(lambda: self._token.run_sync_soon(scope.cancel))
            return await awaitable
        raise TaskCancelledError("the task was cancelled")

    def idle(self, descriptor: int) -> None:
        """Nothing to do: its thread goes on by itself."""

    def close(self) -> None:
        """Cancel what is left and end."""
        self._token.run_sync_soon(self._stop.set)
        self._thread.join()
