"""What a client may say as a mode, when it speaks the local socket's protocol itself."""

from __future__ import annotations

from typing import Any

import pytest

from spear_core.api import ExecutionMode, InvokeRequest, NodeApi
from spear_core.builtins._node_wire import answer
from spear_core.errors import UnsupportedModeError
from spear_core.rpc import Call


class Reached(Exception):  # noqa: N818 - it is the good case
    """The request has come through."""


class Listening:
    """Hears the one request."""

    async def invoke(self, request: InvokeRequest) -> Any:
        raise Reached(request.mode)


def node() -> NodeApi:
    return Listening()  # type: ignore[return-value]


async def test_an_unknown_mode_is_refused_with_those_that_exist() -> None:
    call = Call("invoke", {"function": "f", "mode": "later"}, b"")
    with pytest.raises(UnsupportedModeError, match=r"'later'.*sync or async.*StreamFunction"):
        await answer(node(), call)


@pytest.mark.parametrize("mode", ["sync", "async", "stream"])
async def test_a_known_mode_comes_through(mode: str) -> None:
    with pytest.raises(Reached) as reached:
        await answer(node(), Call("invoke", {"function": "f", "mode": mode}, b""))
    assert reached.value.args == (ExecutionMode(mode),)


async def test_a_client_that_names_none_gets_sync() -> None:
    with pytest.raises(Reached) as reached:
        await answer(node(), Call("invoke", {"function": "f"}, b""))
    assert reached.value.args == (ExecutionMode.SYNC,)
