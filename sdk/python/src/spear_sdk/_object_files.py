"""Objects that are written or read piece by piece."""

from __future__ import annotations

import os

from spear_sdk._object_steps import MOST_IN_ONE, PIPED, ask, bytes_of, join, piped, split
from spear_sdk._stored import ObjectStat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType
    from typing import Any, Self

    from spear_sdk._frames import Descriptor
    from spear_sdk._object_steps import Steps
    from spear_sdk._objects import Objects

__all__ = ["ObjectReader", "ObjectWriter"]

_PIECE = 1 << 20


class ObjectWriter:
    """A new version that comes into being; made by :meth:`Objects.create`."""

    stat: ObjectStat | None = None
    """What was written, once the block has ended."""

    def __init__(self, objects: Objects, key: str, size: int | None, options: Any) -> None:
        self._objects = objects
        self._head = {"key": key, "size": size, **options}
        self._handle: dict[str, str] = {}
        self._pipes = False

    def write(self, data: object) -> int:
        """Append a piece, any buffer; how many bytes it has. Raises: HostcallError."""
        view = bytes_of(data)
        self._objects._run(self._writing(view))
        return len(view)

    async def awrite(self, data: object) -> int:
        """:meth:`write` for async code."""
        view = bytes_of(data)
        await self._objects._arun(self._writing(view))
        return len(view)

    def _opening(self) -> Steps[None]:
        created = yield from ask("create", self._head)
        self._handle = {"handle": created["handle"]}
        self._pipes = created.get("pipe", False)

    def _writing(self, view: memoryview) -> Steps[None]:
        if not self._handle:
            raise ValueError("this writer is not open: use it in its with block")
        start = 0
        if self._pipes and len(view) >= PIPED:
            start = yield from piped(self._handle, view)
        for at in range(start, len(view), MOST_IN_ONE):
            yield from ask("write", self._handle, view[at : at + MOST_IN_ONE])

    def _ending(self, *, failed: bool) -> Steps[None]:
        handle, self._handle = self._handle, {}
        answer = yield from ask("close" if failed else "commit", handle)
        if not failed:
            self.stat = ObjectStat(**answer["stat"])

    def __enter__(self) -> Self:
        self._objects._run(self._opening())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with _only(exc):
            self._objects._run(self._ending(failed=kind is not None))

    async def __aenter__(self) -> Self:
        await self._objects._arun(self._opening())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with _only(exc):
            await self._objects._arun(self._ending(failed=kind is not None))


class _only:  # noqa: N801 - reads like a statement
    """Errors of what follows count only if there was none before."""

    def __init__(self, before: BaseException | None) -> None:
        self._before = before

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        return self._before is not None and kind is not None and issubclass(kind, Exception)


class ObjectReader:
    """One version, read from beginning to end or anywhere; made by :meth:`Objects.open`."""

    stat: ObjectStat
    """What is known about it; there from the beginning of the block."""

    def __init__(self, objects: Objects, key: str, version: int | None) -> None:
        self._objects = objects
        self._head = {"key": key, "version": version}
        self._handle = ""
        self._file: Descriptor | None = None
        self._open = False
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes, so many unless it ends before; all that is left by default."""
        return self._objects._run(self._reading(size))

    async def aread(self, size: int = -1) -> bytes:
        """:meth:`read` for async code."""
        return await self._objects._arun(self._reading(size))

    def seek(self, offset: int) -> None:
        """Go on reading at this byte."""
        if offset < 0:
            raise ValueError("an offset is 0 or more")
        self._at = offset

    def tell(self) -> int:
        """Where reading goes on."""
        return self._at

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(_PIECE):
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.aread(_PIECE):
            yield piece

    def _reading(self, size: int) -> Steps[bytes]:
        if not self._open:
            raise ValueError("this reader is not open: use it in its with block")
        left = max(0, self.stat.size - self._at)
        left = left if size < 0 else min(size, left)
        parts = []
        while left > 0:
            part = yield from self._part(min(left, MOST_IN_ONE))
            self._at += len(part)
            left -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, length: int) -> Steps[bytes]:
        if self._file is not None:
            return os.pread(self._file.number, length, self._at)
        wanted = {"handle": self._handle, "offset": self._at, "length": length}
        answer, _ = yield "objects.read", join(wanted), None
        return answer

    def _opening(self) -> Steps[None]:
        answer, self._file = yield "objects.open", join(self._head), None
        head, _ = split(answer)
        self.stat = ObjectStat(**head["stat"])
        self._handle = head.get("handle", "")
        self._open = True

    def _closing(self) -> Steps[None]:
        self._open = False
        if self._file is not None:
            self._file.close()
        else:
            yield from ask("close", {"handle": self._handle})

    def __enter__(self) -> Self:
        self._objects._run(self._opening())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with _only(exc):
            self._objects._run(self._closing())

    async def __aenter__(self) -> Self:
        await self._objects._arun(self._opening())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with _only(exc):
            await self._objects._arun(self._closing())
