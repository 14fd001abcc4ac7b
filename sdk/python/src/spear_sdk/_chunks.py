"""Chunks: what a function takes as input piece by piece, and what it yields as output."""

from __future__ import annotations

import codecs
import sys

from spear_sdk._errors import BadFunctionError, InvalidInputError, OutputError
from spear_sdk._output import BYTES, encode_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any, Protocol

    from spear_sdk._convert import Decoder
    from spear_sdk._frames import Buffer

    class Source(Protocol):
        """Where chunks of input come from; None is the end."""

        def receive(self) -> Buffer | None:
            """Wait for the next chunk."""

        async def areceive(self) -> Buffer | None:
            """The same for async code."""

    class Sink(Protocol):
        """Where chunks of output go."""

        def send(self, data: Buffer) -> None:
            """Send a chunk; waits while nobody reads."""

        async def asend(self, data: Buffer) -> None:
            """The same for async code."""


__all__ = ["Chunks", "Collected", "Given", "Outputs", "chunk_type", "is_output_stream"]

NDJSON = "application/x-ndjson"
_SYNC, _ASYNC = ("Iterator", "Iterable"), ("AsyncIterator", "AsyncIterable")
_CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x80, 0x200


def chunk_type(annotation: Any, fn: Any) -> tuple[type[Chunks], Any] | None:
    """For an iterator: what to pass for it, and the type of its items; None for other types.

    Raises: BadFunctionError when the function and its iterator are not both async or both sync.
    """
    origin = getattr(annotation, "__origin__", annotation)
    name = getattr(origin, "__name__", "")
    if name not in _SYNC + _ASYNC or getattr(origin, "__module__", "") != "collections.abc":
        return None
    wants_async = name in _ASYNC
    flags = getattr(getattr(fn, "__code__", None), "co_flags", None)
    if flags is not None and wants_async != bool(flags & (_CO_COROUTINE | _CO_ASYNC_GENERATOR)):
        has, takes = ("an async", "a plain") if not wants_async else ("a plain", "an async")
        raise BadFunctionError(
            f"{has} function cannot take {takes} iterator of chunks; "
            f"write {'AsyncIterator' if not wants_async else 'Iterator'}"
        )
    arguments = getattr(annotation, "__args__", ())
    item = arguments[0] if arguments else bytes
    return (AsyncChunks if wants_async else SyncChunks), item


class Chunks:
    """The chunks of an input, each made into what the annotation says."""

    def __init__(self, source: Source, decode: Callable[[Buffer | None], object]) -> None:
        self._source = source
        self._decode = decode

    @classmethod
    def of(
        cls, source: Source, item: Any, decoder: Decoder, parameter: str, content_type: str
    ) -> Chunks:
        """Chunks of text are cut anywhere, so a character may come in two of them."""
        if item is str:
            return cls(source, _text_decoder(parameter))
        return cls(source, lambda data: None if data is None else decoder(data, content_type))


class SyncChunks(Chunks):
    """For plain functions."""

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        data = self._source.receive()
        value = self._decode(data)
        if data is None:
            raise StopIteration
        return value


class AsyncChunks(Chunks):
    """For async functions."""

    def __aiter__(self) -> AsyncIterator[object]:
        return self

    async def __anext__(self) -> object:
        data = await self._source.areceive()
        value = self._decode(data)
        if data is None:
            raise StopAsyncIteration
        return value


def _text_decoder(parameter: str) -> Callable[[Buffer | None], object]:
    decoder = codecs.getincrementaldecoder("utf-8")()

    def decode(data: Buffer | None) -> str:
        try:
            return decoder.decode(data or b"", final=data is None)
        except UnicodeDecodeError as exc:
            raise InvalidInputError(
                f"parameter {parameter!r} takes str: the input isn't UTF-8 text ({exc.reason})"
            ) from None

    return decode


class Given:
    """An input that is already here, as a source.

    It has the async methods too, which never wait.
    """

    def __init__(self, *chunks: Buffer) -> None:
        self._chunks = iter(chunks)

    def receive(self) -> Buffer | None:
        """The next one."""
        return next(self._chunks, None)

    async def areceive(self) -> Buffer | None:
        """The next one."""
        return next(self._chunks, None)


class Collected:
    """A sink that keeps what it is given, up to `most` bytes in all.

    More is refused while the generator still runs: it may well go on for ever.
    """

    def __init__(self, most: int = sys.maxsize) -> None:
        self.chunks: list[bytes] = []
        self._most = self._left = most

    def send(self, data: Buffer) -> None:
        """Keep it. Raises: OutputError when it is too much."""
        self._left -= len(data)
        if self._left < 0:
            self.chunks.clear()
            raise OutputError(
                f"the function's generator has yielded more than the {self._most} bytes that "
                "the node takes at once; call it as a stream",
                code="resource_exhausted",
            )
        self.chunks.append(bytes(data))

    async def asend(self, data: Buffer) -> None:
        """The same."""
        self.send(data)


def is_output_stream(value: object) -> bool:
    """Whether a function's value is an iterator, whose items are chunks of output."""
    cls = type(value)
    return hasattr(cls, "__anext__") or hasattr(cls, "__next__")


class Outputs:
    """Sends what a generator yields, and closes it in whatever way that ends."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.content_type = ""

    def send_all(self, values: Any) -> None:
        """Of a plain iterator."""
        try:
            for value in values:
                self._sink.send(self._encode(value))
        finally:
            close = getattr(values, "close", None)
            if close is not None:
                close()

    async def asend_all(self, values: Any) -> None:
        """Of an async one."""
        try:
            async for value in values:
                await self._sink.asend(self._encode(value))
        finally:
            aclose = getattr(values, "aclose", None)
            if aclose is not None:
                await aclose()

    def _encode(self, value: object) -> Buffer:
        """Bytes and text as in any output; anything else is JSON on a line of its own."""
        data, content_type = encode_output(value)
        if content_type == "application/json":
            data, content_type = bytes(data) + b"\n", NDJSON
        self.content_type = self.content_type or content_type
        return data

    @property
    def told_type(self) -> str:
        """The first chunk's content type."""
        return self.content_type or BYTES
