"""A large object on its way, seen from a terminal: how far it is, how it ends, and Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import select
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

SPEAR = str(Path(sys.executable).with_name("spear"))
MUCH = 24 << 20
"""Bytes of a value that is worth a bar."""
HALF = 12 << 20
"""Bytes after which the line to the node stands still."""
CTRL_C = b"\x03"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
SHOWN = re.compile(rb"(\d+\.\d)/(\S+) MiB")


@attrs.define
class Terminal:
    """A command whose controlling terminal the test has the other end of."""

    process: subprocess.Popen[bytes]
    descriptor: int
    shown: bytes = b""

    def wait_for(self, seen: Callable[[], object], what: str) -> None:
        """Read what it shows until that is so."""
        while not seen():
            assert self._read(), f"ended before {what}: {self.shown[-500:]!r}"

    def type(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def end(self) -> int:
        """Read to its end; the exit status."""
        while self._read():
            pass
        return self.process.wait(60)

    @property
    def figures(self) -> list[tuple[float, str]]:
        """Every "so much of so much" that was shown, in MiB."""
        return [(float(done), whole.decode()) for done, whole in SHOWN.findall(self.shown)]

    def is_half_way(self) -> bool:
        """As far as the line lets it, give or take what is in buffers."""
        return bool(self.figures) and self.figures[-1][0] > HALF / 2**20 * 0.9

    @property
    def said(self) -> str:
        """The lines that stay when the bar has gone."""
        left = self.shown.rpartition(b"\x1b[2K")[2]
        return re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]|\r", b"", left).decode()

    def _read(self) -> bool:
        ready, _, _ = select.select([self.descriptor], [], [], 60)
        assert ready, f"nothing more is shown after {self.shown[-500:]!r}"
        more = b""
        with suppress(OSError):  # the command has closed its end
            more = os.read(self.descriptor, 65536)
        self.shown += more
        return bool(more)


@pytest.fixture
def on_terminal(home: Any) -> Iterator[Callable[..., Terminal]]:
    """``on_terminal("put", …)``: ``spear objects put …`` in a terminal of its own. What of its
    three streams is given is not the terminal."""
    opened = []

    def start(*args: str, **streams: Any) -> Terminal:
        ours, theirs = pty.openpty()
        opened.append(ours)

        def take_terminal() -> None:
            """So that Ctrl-C is what it is: the kernel's signal to who is in the foreground."""
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            [SPEAR, "objects", *args],
            cwd=home.folder,
            env={**home.environ(), "TERM": "xterm-256color", "COLUMNS": "100"},
            start_new_session=True,
            preexec_fn=take_terminal,
            **{"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams},
        )
        os.close(theirs)
        home.processes.append(process)
        return Terminal(process, ours)

    yield start
    for descriptor in opened:
        os.close(descriptor)


@pytest.fixture
def narrow(home: Any, tmp_path: Path) -> Iterator[str]:
    """The address of a line to the node that carries ``HALF`` bytes each way, then none."""
    path = tmp_path / "narrow.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        node = home.state / "node.sock"
        serving = threading.Thread(target=_serve, args=(listening, node), daemon=True)
        serving.start()
        yield f"unix://{path}"
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        serving.join()


def _serve(listening: socket.socket, node: Path) -> None:
    """A thread for each connection, until nobody listens any more."""
    with suppress(OSError):
        while True:
            near, _ = listening.accept()
            threading.Thread(target=_connect, args=(near, node), daemon=True).start()


def _connect(near: socket.socket, node: Path) -> None:
    with near, socket.socket(socket.AF_UNIX) as far:
        far.connect(str(node))
        back = threading.Thread(target=_carry, args=(far, near), daemon=True)
        back.start()
        _carry(near, far)
        back.join()


def _carry(source: socket.socket, target: socket.socket) -> None:
    """Pass on ``HALF`` bytes, and then nothing but the end."""
    left = HALF
    with suppress(OSError):
        while left and (data := source.recv(min(left, 65536))):
            target.sendall(data)
            left -= len(data)
        if not left:
            hung_up = select.poll()
            hung_up.register(source, 0)  # nothing but that: what else comes stays where it is
            hung_up.poll()
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def value(home: Any) -> bytes:
    """What is in the file ``big``."""
    value = random.Random(1).randbytes(MUCH)
    (home.folder / "big").write_bytes(value)
    return value


@pytest.fixture
def node(home: Any) -> Any:
    (home.folder / "config.toml").write_text('[stores]\nobjects = "lmdb"\n')
    return home.node("--config", "config.toml")


def usage(home: Any) -> dict[str, int]:
    found: dict[str, int] = json.loads(home.spear("objects", "df", "--json").out)
    return found


def rises(figures: list[tuple[float, str]]) -> bool:
    return [done for done, _ in figures] == sorted(done for done, _ in figures)


@pytest.mark.usefixtures("node")
def test_a_terminal_shows_how_far_it_is(home: Any, on_terminal: Any, value: bytes) -> None:
    putting = on_terminal("put", "a/x", "big")
    assert putting.end() == 0
    assert {whole for _, whole in putting.figures} == {"24.0"}
    assert putting.figures[-1] == (24.0, "24.0")
    assert rises(putting.figures)
    assert putting.said == "a/x is version 1\n", "the bar is gone, what came of it stays"
    assert putting.shown.count(HIDE_CURSOR) == putting.shown.count(SHOW_CURSOR) == 1
    getting = on_terminal("get", "a/x", "-o", "copy")
    assert getting.end() == 0
    assert getting.figures[-1] == (24.0, "24.0")
    assert rises(getting.figures)
    assert getting.said == ""
    assert (home.folder / "copy").read_bytes() == value


@pytest.mark.usefixtures("node")
def test_a_value_of_unknown_size_shows_what_has_come(home: Any, on_terminal: Any) -> None:
    putting = on_terminal("put", "a/x", "-", stdin=subprocess.PIPE)
    putting.process.stdin.write(bytes(5 << 20))
    putting.process.stdin.flush()
    putting.wait_for(lambda: (5.0, "?") in putting.figures, "all that was given is shown")
    putting.process.stdin.close()
    assert putting.end() == 0
    assert putting.said == "a/x is version 1\n"


@pytest.mark.usefixtures("node")
def test_what_is_piped_or_small_is_not_shown(home: Any, on_terminal: Any, value: bytes) -> None:
    for arguments in (["put", "a/x", "big"], ["get", "a/x", "-o", "copy"]):
        told = home.spear("objects", *arguments)
        assert (told.status, told.err) == (0, "")
    assert (home.folder / "copy").read_bytes() == value
    with (home.folder / "out").open("wb") as out:  # stderr is the terminal still
        getting = on_terminal("get", "a/x", stdout=out)
        assert getting.end() == 0
    assert getting.figures[-1] == (24.0, "24.0")
    assert (home.folder / "out").read_bytes() == value
    (home.folder / "small").write_bytes(bytes(1 << 20))
    putting = on_terminal("put", "a/small", "small")
    assert putting.end() == 0
    assert putting.shown == b"a/small is version 1\r\n"


@pytest.mark.usefixtures("node", "value")
def test_interrupted_in_the_middle_of_a_put(home: Any, on_terminal: Any, narrow: str) -> None:
    assert home.spear("objects", "put", "a/x", "-", stdin=b"before").status == 0
    putting = on_terminal("put", "a/x", "big", "--node", narrow)
    putting.wait_for(putting.is_half_way, "it is half way")
    home.wait_until(lambda: usage(home)["bytes"] > 10 << 20, "the node has some of the value")
    putting.type(CTRL_C)
    assert putting.end() == 130
    assert putting.said == "interrupted; nothing was written\n"
    assert SHOW_CURSOR in putting.shown
    home.wait_until(lambda: usage(home)["bytes"] == len("before"), "what was sent is gone")
    assert home.spear("objects", "get", "a/x").out == "before"
    assert list((home.state / "plugins" / "store-lmdb" / "objects" / "blobs").iterdir()) == []


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resumed"])
def test_interrupted_in_the_middle_of_a_get(
    home: Any, on_terminal: Any, narrow: str, value: bytes, resume: bool
) -> None:
    assert home.spear("objects", "put", "a/x", "big").status == 0
    (home.folder / "copy").write_text("before")
    options = ["a/x", "-o", "copy", *(["--resume"] if resume else [])]
    getting = on_terminal("get", *options, "--node", narrow)
    getting.wait_for(getting.is_half_way, "it is half way")
    getting.type(CTRL_C)
    assert getting.end() == 130
    kept = "--resume goes on from here" if resume else "nothing was written"
    assert getting.said == f"interrupted; {kept}\n"
    assert SHOW_CURSOR in getting.shown
    assert (home.folder / "copy").read_text() == "before"
    assert len(list(home.folder.glob(".copy.*"))) == resume
    again = on_terminal("get", *options)
    assert again.end() == 0
    if resume:
        assert again.figures[0][0] >= 10, "it begins where the other one was"
    assert (home.folder / "copy").read_bytes() == value
    assert list(home.folder.glob(".copy.*")) == []
