"""Functions that take and give their data in chunks, called as a worker would call them."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

from spear_sdk import Context, current_context, function
from spear_sdk._entry import Entry
from spear_sdk._errors import BadFunctionError, InvalidInputError
from spear_sdk.testing import FakeContext, arun, astream, run, stream


async def shout(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    async for chunk in chunks:
        yield chunk.upper()


def shout_plain(chunks: Iterable[str]) -> Iterator[str]:
    for chunk in chunks:
        yield chunk.upper()


@function(backend="trio")
async def shout_trio(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    import trio

    async for chunk in chunks:
        await trio.lowlevel.checkpoint()
        yield chunk.upper()


@pytest.mark.parametrize("fn", [shout, shout_plain, shout_trio])
def test_each_chunk_goes_through(fn: Any) -> None:
    done = stream(fn, ["a", b"b", "c"])
    assert done.chunks == [b"A", b"B", b"C"]
    assert done.error is None
    assert done.content_type in ("text/plain; charset=utf-8", "application/octet-stream")


@pytest.mark.parametrize("fn", [shout, shout_plain, shout_trio])
def test_a_plain_call_is_one_chunk_and_its_output_joined(fn: Any) -> None:
    assert run(fn, "whole").text == "WHOLE"
    assert run(fn, b"").output == b""


async def test_within_a_loop_that_runs() -> None:
    assert (await astream(shout_trio, [b"x", b"y"])).chunks == [b"X", b"Y"]
    assert (await astream(shout_plain, [b"x"])).chunks == [b"X"]
    assert (await arun(shout_trio, b"x")).output == b"X"


def test_json_per_chunk_both_ways() -> None:
    def double(chunks: Iterator[dict[str, int]]) -> Iterator[dict[str, int]]:
        for chunk in chunks:
            yield {"n": chunk["n"] * 2}

    done = stream(double, [{"n": 1}, {"n": 2}])
    assert done.chunks == [b'{"n":2}\n', b'{"n":4}\n']
    assert done.content_type == "application/x-ndjson"
    wrong = stream(double, [{"n": 1}, {"n": "x"}])
    assert wrong.chunks == [b'{"n":2}\n']
    assert isinstance(wrong.error, InvalidInputError)
    assert "chunks" in str(wrong.error)


def test_text_may_be_cut_within_a_character() -> None:
    euro = "€".encode()
    assert stream(shout_plain, [b"a" + euro[:1], euro[1:], b"b"]).output == "A€B".encode()
    cut = stream(shout_plain, [euro[:2]])
    assert isinstance(cut.error, InvalidInputError)
    assert "UTF-8" in str(cut.error)


def test_what_came_before_a_failure_has_been_sent() -> None:
    def fail(text: str) -> Iterator[str]:
        yield text
        raise ValueError("after one")

    done = stream(fail, ["a", "b"])
    assert done.chunks == [b"ab"]
    assert isinstance(done.error, ValueError)
    with pytest.raises(ValueError, match="after one"):
        run(fail, "a")


@pytest.mark.parametrize("backend", ["asyncio", "trio", "none"])
def test_a_caller_that_leaves_closes_the_generator(backend: str) -> None:
    context = FakeContext()

    async def count(ctx: Context) -> AsyncIterator[str]:
        try:
            while True:
                yield "again"
        finally:
            ctx.log.info("closed")

    def count_plain(ctx: Context) -> Iterator[str]:
        try:
            while True:
                yield "again"
        finally:
            ctx.log.info("closed")

    fn: Any = count_plain if backend == "none" else function(backend=backend)(count)  # type: ignore[call-overload]
    assert stream(fn, context=context, take=3).chunks == [b"again"] * 3
    assert context.logs == [("info", "closed")]


def test_the_context_is_there_in_a_generator() -> None:
    async def whose() -> AsyncIterator[str]:
        yield current_context().task_id

    assert stream(whose).chunks == [b"test-task"]


def test_a_function_that_streams_nothing_gets_it_whole() -> None:
    def size(data: bytes) -> int:
        return len(data)

    assert stream(size, [b"abc", b"de"]).chunks == [b"5"]


def test_async_and_plain_do_not_mix() -> None:
    async def wrong(chunks: Iterator[bytes]) -> bytes:
        return b"".join(chunks)

    def wrong_too(chunks: AsyncIterator[bytes]) -> bytes:
        return b""

    with pytest.raises(BadFunctionError, match="write AsyncIterator"):
        Entry(wrong)
    with pytest.raises(BadFunctionError, match="write Iterator"):
        Entry(wrong_too)


def test_iterators_imported_for_type_checkers_only() -> None:
    namespace: dict[str, Any] = {}
    source = (
        "from __future__ import annotations\n"
        "async def f(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:\n"
        "    async for chunk in chunks:\n"
        "        yield chunk\n"
    )
    exec(source, namespace)
    assert stream(namespace["f"], [b"x"]).chunks == [b"x"]
