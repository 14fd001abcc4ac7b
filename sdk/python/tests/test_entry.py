"""The decorator, finding functions in a file, and how each shape of function is called."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from spear_sdk import Context, FunctionError, InvalidInputError, function
from spear_sdk._entry import Entry
from spear_sdk._errors import BadFunctionError, EntryNotFoundError
from spear_sdk._load import find_entry, load_module
from spear_sdk.testing import FakeContext

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]

CONTEXT = FakeContext()

Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def make(source: str, name: str = "agent.py") -> ModuleType:
        (tmp_path / name).write_text(textwrap.dedent(source))
        return load_module(str(tmp_path / name), name)

    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


def call(fn: Any, payload: bytes = b"in", content_type: str = "text/plain") -> Any:
    return Entry(fn).call(payload, content_type, CONTEXT)


def plain_wrapper(fn: Any) -> Any:
    @functools.wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return inner


class Greeter:
    def __call__(self, x: str, ctx: Context) -> Any:
        return "called", x, ctx

    def method(self, x: str) -> Any:
        return "method", x


def keywords(*, x: str, ctx: Context) -> Any:
    return x, ctx


def defaults(x: str = "default", ctx: Context | None = None, rest: int = 5) -> Any:
    return x, ctx, rest


def by_type(other: Context, x: bytes) -> Any:
    return other, x


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda: "nothing", "nothing"),
        (lambda x: x, "in"),
        (lambda ctx: ctx, CONTEXT),
        (lambda context: context, CONTEXT),
        (lambda x, ctx: (x, ctx), ("in", CONTEXT)),
        (lambda ctx, x: (ctx, x), (CONTEXT, "in")),
        (lambda x, y=1: (x, y), ("in", 1)),
        (lambda *args: args, ()),
        (by_type, (CONTEXT, b"in")),
        (keywords, ("in", CONTEXT)),
        (defaults, ("in", CONTEXT, 5)),
        (plain_wrapper(by_type), (CONTEXT, b"in")),
        (functools.partial(by_type, x=b"bound"), (CONTEXT, b"bound")),
        (Greeter(), ("called", "in", CONTEXT)),
        (Greeter().method, ("method", "in")),
    ],
)
def test_fills_the_parameters(fn: Any, expected: object) -> None:
    assert call(fn) == expected


def test_the_default_holds_for_the_empty_input() -> None:
    assert call(defaults, b"") == ("default", CONTEXT, 5)


def test_refuses_parameters_it_cannot_fill() -> None:
    def two(a: str, b: str) -> None: ...

    def unresolved(a: Missing) -> None: ...

    def odd(a: complex) -> None: ...

    with pytest.raises(BadFunctionError, match="two needs a parameter 'b'"):
        Entry(two)
    with pytest.raises(BadFunctionError, match=r"the type 'Missing' of parameter 'a'.*not defined"):
        Entry(unresolved)
    with pytest.raises(BadFunctionError, match=r"parameter 'a' of odd: .* complex"):
        Entry(odd)


def test_a_context_imported_for_type_checkers_only_is_one(load: Load) -> None:
    module = load(
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from spear_sdk import Context
        def main(c: Context, x: int): return c, x
        """
    )
    assert call(module.main, b"4") == (CONTEXT, 4)


def test_the_decorator_leaves_the_function_alone() -> None:
    def original(x: int) -> int:
        return x + 1

    assert function(original) is original
    assert function(name="n", backend="trio")(original) is original
    entry = Entry(original)
    assert (entry.name, entry.backend) == ("n", "trio")


def test_the_decorator_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="there are asyncio and trio"):
        function(backend="curio")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="not for 5"):
        function(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="write @function"):
        function(Greeter())


SEVERAL = """
from spear_sdk import function, InvalidInputError
@function
def a(): return "a"
@function(name="bee")
def b(): return "b"
def plain(): return "plain"
class Tools:
    @staticmethod
    def hammer(): return "hammer"
number = 5
"""


@pytest.mark.parametrize(
    ("entry", "result"), [("a", "a"), ("bee", "b"), ("plain", "plain"), ("Tools.hammer", "hammer")]
)
def test_finds_a_function_by_name(load: Load, entry: str, result: str) -> None:
    fn: Any = find_entry(load(SEVERAL), entry, "agent.py")
    assert fn() == result


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("@function\ndef only(): return 1\ndef main(): return 2", 1),
        ("@function\ndef other(): return 1\n@function\ndef main(): return 2", 2),
        ("@function\ndef handle(): return 1\n@function\ndef x(): return 2", 1),
        ("def main(): return 1\ndef helper(): return 2", 1),
        ("def handler(): return 1", 1),
        ("from helper import used\n@function\ndef own(): return 1", 1),
        ("from helper import used", 9),
    ],
)
def test_finds_the_default_function(load: Load, tmp_path: Path, source: str, result: int) -> None:
    (tmp_path / "helper.py").write_text(
        "from spear_sdk import function\n@function\ndef used(): return 9\n"
    )
    fn: Any = find_entry(load(f"from spear_sdk import function\n{source}"), "", "agent.py")
    assert fn() == result


@pytest.mark.parametrize(
    ("source", "entry", "message"),
    [
        (SEVERAL, "", "agent.py has several functions (a, bee): say which one, as agent.py:NAME"),
        (SEVERAL, "c", "agent.py has no function 'c'; it has a, bee"),
        (SEVERAL, "number", "'number' in agent.py is no function"),
        ("def f(): ...\nimport json", "", "agent.py has no function: decorate one"),
        ("def f(): ...\nfrom json import loads", "g", "has no function 'g'; it has f"),
        ("x = 1", "g", "it has none"),
    ],
)
def test_says_what_there_is(load: Load, source: str, entry: str, message: str) -> None:
    with pytest.raises(EntryNotFoundError) as caught:
        find_entry(load(source), entry, "agent.py")
    assert message in str(caught.value)
    assert caught.value.code == "not_found"


def test_a_loaded_module_is_a_real_one(load: Load, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("value = 3\n")
    module = load(
        """\
        # -*- coding: utf-8 -*-
        import dataclasses, inspect, pickle, beside
        @dataclasses.dataclass
        class Box:
            n: int = beside.value
        copy = pickle.loads(pickle.dumps(Box()))
        def main(): return inspect.getsource(main)
        ran_as_script = __name__ == "__main__"
        """
    )
    assert module.__name__ == "agent"
    assert module.__file__ == str(tmp_path / "agent.py")
    assert module.copy == module.Box(3)
    assert module.main() == "def main(): return inspect.getsource(main)\n"
    assert not module.ran_as_script
    assert sys.path[0] == str(tmp_path)


@pytest.mark.parametrize("name", ["json.py", "pytest.py", "2nd-agent.v1.py"])
def test_a_file_may_have_the_name_of_another_module(load: Load, name: str) -> None:
    taken = sys.modules.get(name.removesuffix(".py"))
    module = load("def main(): return 1", name)
    assert module.main() == 1
    assert module.__name__.isidentifier()
    assert sys.modules.get(name.removesuffix(".py")) is taken


def test_a_module_that_fails_to_load_is_forgotten(load: Load) -> None:
    with pytest.raises(ZeroDivisionError):
        load("1 / 0", "broken.py")
    assert "broken" not in sys.modules


def test_errors_have_codes() -> None:
    assert FunctionError("x").code == "unknown"
    assert FunctionError("x", code="not_found", details={"a": "b"}).details == {"a": "b"}
    assert issubclass(InvalidInputError, FunctionError)


def test_the_import_is_light() -> None:
    heavy = "asyncio inspect typing logging json dataclasses traceback socket threading trio re"
    code = (
        "import sys; before = set(sys.modules); import spear_sdk; "
        f"print(*[m for m in {heavy.split()!r} if m in sys.modules and m not in before])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(Path(sys.modules["spear_sdk"].__file__ or "").parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
