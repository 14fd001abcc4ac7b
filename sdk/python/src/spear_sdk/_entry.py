"""A function made ready to be called with input bytes."""

from __future__ import annotations

import _collections_abc

from spear_sdk._chunks import Given, chunk_type
from spear_sdk._context import Context
from spear_sdk._convert import decoder_for
from spear_sdk._errors import BadFunctionError
from spear_sdk._function import marks_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from spear_sdk._chunks import Chunks, Source
    from spear_sdk._convert import Decoder

__all__ = ["Entry"]

_CONTEXT_NAMES = ("ctx", "context")
_POSITIONAL, _KEYWORD = "positional", "keyword"


class _Parameter:
    """One parameter: its name, how it is passed, whether it may be left out, its type."""

    __slots__ = ("annotation", "how", "name", "optional")

    def __init__(self, name: str, how: str, *, optional: bool, annotation: object) -> None:
        self.name = name
        self.how = how
        self.optional = optional
        self.annotation = annotation


class Entry:
    """Calls one function: input bytes in, whatever it returns out (maybe an awaitable).

    Raises: BadFunctionError.
    """

    def __init__(self, fn: Any) -> None:
        marks = marks_of(fn)
        self.fn = fn
        self.name = marks.name if marks else getattr(fn, "__name__", repr(fn))
        self.backend = marks.backend if marks else "asyncio"
        self._decode: Decoder | None = None
        self._input_optional = False
        self._chunks: Callable[[Source, str], Chunks] | None = None
        """For a function that takes its input piece by piece."""
        self._fill: list[str] = []
        """What each positional argument is: ``input`` or ``context``."""
        self._fill_named: dict[str, str] = {}
        self._names: dict[str, str] = {}
        for parameter in _parameters(fn):
            self._add(parameter)

    def _add(self, parameter: _Parameter) -> None:
        annotation = _resolve(parameter, self.fn, self.name)
        if _wants_context(parameter.name, annotation):
            role = "context"
        elif self._decode is None and not (parameter.how == _KEYWORD and parameter.optional):
            role = "input"
            annotation = object if annotation is _NONE else annotation
            try:
                self._take_input(annotation, parameter.name)
            except BadFunctionError as exc:
                raise BadFunctionError(
                    f"parameter {parameter.name!r} of {self.name}: {exc}"
                ) from None
            self._input_optional = parameter.optional
        elif parameter.optional:
            return
        else:
            raise BadFunctionError(
                f"{self.name} needs a parameter {parameter.name!r}; "
                "a function takes at most an input and a context"
            )
        self._names[parameter.name] = role
        if parameter.how == _POSITIONAL:
            self._fill.append(role)
        else:
            self._fill_named[parameter.name] = role

    def _take_input(self, annotation: object, parameter: str) -> None:
        chunks = chunk_type(annotation, self.fn)
        if chunks is None:
            self._decode = decoder_for(annotation, parameter)
            return
        make, item = chunks
        decode = self._decode = decoder_for(item, parameter)
        self._chunks = lambda source, content_type: make.of(
            source, item, decode, parameter, content_type
        )

    @property
    def takes_chunks(self) -> bool:
        """Whether the function takes its input piece by piece."""
        return self._chunks is not None

    def call(
        self,
        payload: bytes | bytearray | memoryview,
        content_type: str,
        context: Context,
        source: Source | None = None,
    ) -> Any:
        """Call the function. Raises: InvalidInputError, and whatever the function raises.

        :param source: where the input of a function that takes chunks comes from; by default the
            payload is its only chunk, or there is none when it is empty.
        """
        values: dict[str, object] = {"context": context}
        if self._chunks is not None:
            if source is None:
                source = Given(payload) if payload else Given()
            values["input"] = self._chunks(source, content_type)
        elif self._decode is not None:
            if not payload and self._input_optional:  # its default holds
                return self.fn(**{n: context for n, r in self._names.items() if r == "context"})
            values["input"] = self._decode(payload, content_type)
        arguments = [values[role] for role in self._fill]
        if not self._fill_named:
            return self.fn(*arguments)
        named = {name: values[role] for name, role in self._fill_named.items()}
        return self.fn(*arguments, **named)


_NONE = object()


def _parameters(fn: Any) -> Iterator[_Parameter]:
    code = getattr(fn, "__code__", None)
    if code is None or hasattr(fn, "__wrapped__") or hasattr(fn, "__signature__"):
        yield from _inspected(fn)
        return
    names = code.co_varnames
    defaults = len(fn.__defaults__ or ())
    skip = 1 if getattr(fn, "__self__", None) is not None else 0  # a bound method
    for at in range(skip, code.co_argcount):
        yield _Parameter(
            names[at],
            _POSITIONAL,
            optional=at >= code.co_argcount - defaults,
            annotation=fn.__annotations__.get(names[at], _NONE),
        )
    for name in names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]:
        yield _Parameter(
            name,
            _KEYWORD,
            optional=name in (fn.__kwdefaults__ or ()),
            annotation=fn.__annotations__.get(name, _NONE),
        )


def _inspected(fn: Any) -> Iterator[_Parameter]:
    """For what is no plain function: partials, callable objects, wrapped functions."""
    import inspect

    empty = inspect.Parameter.empty
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        yield _Parameter(
            parameter.name,
            _KEYWORD if parameter.kind is parameter.KEYWORD_ONLY else _POSITIONAL,
            optional=parameter.default is not empty,
            annotation=_NONE if parameter.annotation is empty else parameter.annotation,
        )


def _resolve(parameter: _Parameter, fn: Any, name: str) -> object:
    """The annotation itself where the source has it as text."""
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    while hasattr(fn, "__wrapped__"):
        fn = fn.__wrapped__
    fn = getattr(fn, "func", fn)  # a partial
    code = fn if hasattr(fn, "__globals__") else type(fn).__call__
    try:
        names = getattr(code, "__globals__", {})
        if "Itera" in annotation:  # iterators are often imported for type checkers only
            names = {**vars(_collections_abc), **names}
        return eval(annotation, names)
    except Exception as exc:  # barrier: the annotation is the guest's code
        if annotation.rpartition(".")[2].strip("'\"") == "Context":
            return Context  # imported for type checkers only
        raise BadFunctionError(
            f"the type {annotation!r} of parameter {parameter.name!r} of {name} "
            f"cannot be resolved: {exc}"
        ) from None


def _wants_context(name: str, annotation: Any) -> bool:
    if annotation is _NONE:
        return name in _CONTEXT_NAMES
    if annotation is Context:
        return True
    return Context in (getattr(annotation, "__args__", None) or ())
