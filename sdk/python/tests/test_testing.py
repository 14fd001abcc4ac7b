"""The public test kit, and the README that shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import spear_sdk
from spear_sdk import (
    Context,
    FunctionError,
    HostcallError,
    InvalidInputError,
    current_context,
    function,
)
from spear_sdk.testing import FakeContext, arun, run

README = Path(__file__).parents[1] / "README.md"


@function
def double(x: int, ctx: Context) -> dict[str, int]:
    ctx.log.info("doubling %d", x)
    assert current_context() is ctx
    return {"x": 2 * x}


@function
async def ask(ctx: Context) -> str:
    assert current_context() is ctx
    return (await ctx.ahostcall("chat.complete", "hi")).decode()


@function(backend="trio")
async def on_trio(x: str) -> str:
    import trio

    await trio.lowlevel.checkpoint()
    return x.upper()


def test_runs_a_function_as_a_caller_would() -> None:
    context = FakeContext()
    result = run(double, 21, context=context)
    assert result.value == {"x": 42}
    assert result.output == b'{"x":42}'
    assert result.json() == {"x": 42}
    assert result.content_type == "application/json"
    assert context.logs == [("info", "doubling 21")]


def test_bad_input_raises() -> None:
    with pytest.raises(InvalidInputError, match="must be an integer"):
        run(double, "[]")


@function
def fan_out(words: list[str], ctx: Context) -> dict[str, Any]:
    started = [ctx.start("double", len(word)) for word in words]
    return {"doubled": [call.result() for call in started], "up": ctx.invoke("up", words[0])}


@function
async def fan_out_async(words: list[str], ctx: Context) -> str:
    call = await ctx.astart("up", words[0], timeout=5, priority="high")
    await (await ctx.astart("up", words[0])).acancel()
    return str(await call.aresult()) + str(await ctx.ainvoke("up", words[1]))


def test_other_functions_are_called() -> None:
    context = FakeContext(functions={"double": double, "up": on_trio})
    assert run(fan_out, ["a", "bc"], context=context).json() == {
        "doubled": [{"x": 2}, {"x": 4}],
        "up": "A",
    }
    assert context.invoked == [("double", b"1"), ("double", b"2"), ("up", b"a")]
    assert context.calls == []
    assert run(fan_out_async, ["a", "b"], context=context).text == "AB"


def test_the_failure_of_another_function_is_typed() -> None:
    def refuse(ctx: Context) -> None:
        raise FunctionError("no such city", code="not_found", details={"city": "Atlantis"})

    context = FakeContext(functions={"refuse": refuse})
    with pytest.raises(HostcallError, match="no such city") as refused:
        context.invoke("refuse")
    assert (refused.value.code, refused.value.kind) == ("not_found", "FunctionError")
    assert refused.value.details == {"city": "Atlantis"}
    assert refused.value.task_id
    with pytest.raises(HostcallError, match="no function 'nobody'"):
        context.invoke("nobody")
    cancelled = context.start("refuse")
    cancelled.cancel()
    with pytest.raises(HostcallError, match="cancelled"):
        cancelled.result()
    with pytest.raises(TypeError, match="colour"):
        context.invoke("refuse", colour="red")  # type: ignore[call-arg]


def test_runs_async_functions_on_their_loop() -> None:
    context = FakeContext(hostcalls={"chat.complete": lambda payload: payload + b"!"})
    assert run(ask, context=context).text == "hi!"
    assert context.calls == [("chat.complete", b"hi")]
    assert run(on_trio, "x").text == "X"


async def test_async_tests_use_their_own_loop() -> None:
    assert (await arun(on_trio, "x")).text == "X"
    assert (await arun(double, 1)).json() == {"x": 2}


@pytest.mark.parametrize(
    ("answers", "error"),
    [({}, "no answer to a.b"), ({"a.b": HostcallError("full")}, "full")],
)
def test_hostcalls_fail_unless_answered(answers: Any, error: str) -> None:
    with pytest.raises(HostcallError, match=error):
        run(lambda ctx: ctx.hostcall("a.b"), context=FakeContext(hostcalls=answers))


def test_cancellation_and_deadline() -> None:
    context = FakeContext(deadline_s=10, hostcalls={"a.b": "x"})
    assert context.remaining is not None
    assert 9 < context.remaining <= 10
    assert not context.cancelled
    assert context.hostcall("a.b") == b"x"
    context.cancel()
    for attempt in (context.raise_if_cancelled, lambda: context.hostcall("a.b")):
        with pytest.raises(spear_sdk.TaskCancelledError):
            attempt()
    assert not issubclass(spear_sdk.TaskCancelledError, Exception)


def test_outside_of_a_function_there_is_no_context() -> None:
    run(double, 1)
    with pytest.raises(RuntimeError, match="no SPEAR function is running"):
        current_context()


def test_the_public_names() -> None:
    assert sorted(spear_sdk.__all__) == [
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
    assert all(getattr(spear_sdk, name) for name in spear_sdk.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = spear_sdk.nothing


def test_the_readme_shows_what_works() -> None:
    text = README.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert next(n for n, line in enumerate(lines, 1) if "pip install" in line) <= 15
    assert next(n for n, line in enumerate(lines, 1) if line == "Hello, Ada!") <= 30
    names: dict[str, Any] = {"__name__": "readme"}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    names["test_gather"]()
    greet = re.search(r"<<'END'\n(.*?)> END", text, re.DOTALL)
    assert greet is not None
    exec(re.sub(r"^> ?", "", greet[1], flags=re.MULTILINE), names)
    assert run(names["greet"], "Ada").text == "Hello, Ada!"


def test_an_object_is_the_input_of_another_function() -> None:
    context = FakeContext(functions={"up": on_trio}, objects={"word": b"abc"})
    assert context.invoke("up", input_object="word") == "ABC"
    assert context.invoke("up", input_object="word", content_type="text/plain") == "ABC"
    assert context.invoked == [("up", b"abc")] * 2
    with pytest.raises(HostcallError) as missing:
        context.invoke("up", input_object="nothing")
    assert missing.value.code == "not_found"
