"""What may strike at any moment: a finalizer, and the thread that reads the channel."""

from __future__ import annotations

import io
import threading
from collections import deque
from typing import Any

import pytest

from spear_sdk import TaskCancelledError
from spear_sdk import _frames as f
from spear_sdk._context import Running, current
from spear_sdk._hostcalls import Hostcalls, _Pending
from spear_sdk._parallel import _TaskWriter
from spear_sdk._stream import WorkerStream
from spear_sdk.testing import FakeContext


class Channel:
    """Keeps what is sent."""

    passes_fds = False

    def __init__(self) -> None:
        self.sent: list[int] = []

    def send(self, kind: int, number: int, *rest: Any, **more: Any) -> None:
        self.sent.append(kind)


def test_a_finalizer_may_print_while_its_thread_prints() -> None:
    said: list[str] = []

    class Log:
        def log(self, context: object, level: str, message: str, *, source: str) -> None:
            said.append(message)

    writer = _TaskWriter(io.StringIO(), Log(), "stdout")  # type: ignore[arg-type]
    context = FakeContext()

    class Strikes(dict[Any, str]):
        """As one that is collected when the lines of a print are put together."""

        def pop(self, key: Any, *default: Any) -> str:
            if not said:
                said.append("")
                print("struck", "\nand begun ", file=writer, end="")
            return super().pop(key, *default)

    writer._begun = Strikes()

    def run() -> None:
        current.set(context)
        Running.several.add(context)
        try:
            print("one\ntwo", file=writer, end="")
            writer.end(context)
        finally:
            Running.several.discard(context)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert "".join(said).replace(" ", "") == "struckandbegunonetwo"


def test_the_last_chunk_is_there_before_the_end_is() -> None:
    """A function's own thread looks at both without the lock."""
    stream = WorkerStream(Channel(), 1)  # type: ignore[arg-type]
    ended: list[bool] = []

    class Inbox(deque[Any]):
        def append(self, item: Any) -> None:
            ended.append(stream._ended)
            super().append(item)

    stream._inbox = Inbox()
    stream.on_data(f.END_STREAM, b"last")
    assert ended == [False]
    assert (stream.receive(), stream.receive()) == (b"last", None)


def test_credit_is_counted_by_two_threads_at_once() -> None:
    stream = WorkerStream(Channel(), 1)  # type: ignore[arg-type]
    held: list[bool] = []

    class Counted(WorkerStream):
        @property
        def _granted(self) -> int:
            held.append(self._changed._is_owned())  # type: ignore[attr-defined]
            return self.counted

        @_granted.setter
        def _granted(self, value: int) -> None:
            self.counted = value

    stream.counted = stream._granted  # type: ignore[attr-defined]
    del stream._granted
    stream.__class__ = Counted
    for _ in range(3):
        stream.on_data(0, bytes(65_536))
        stream.receive()
    assert len(held) > 4
    assert all(held)


def test_a_hostcall_that_was_cancelled_is_done_once_it_is_off_the_list() -> None:
    """Its thread, which is just about to wait, would look for it there in vain."""
    channel = Channel()
    hostcalls = Hostcalls(channel)  # type: ignore[arg-type]
    pending = _Pending(FakeContext(), None, blocking=True)
    seen: list[bool] = []

    class List(dict[int, _Pending]):
        def pop(self, *args: Any) -> Any:
            seen.append(pending.done)
            return super().pop(*args)

    hostcalls._pending = List({2: pending})
    hostcalls.cancel(pending.context, only_blocking=True)
    assert seen == [True]
    assert channel.sent == [f.CANCEL]
    with pytest.raises(TaskCancelledError):
        pending.result()
