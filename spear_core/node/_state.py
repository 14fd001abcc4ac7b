"""Holding a state directory: its modes, its lock, its node's identity."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spear_core.errors import ConfigError, NodeAlreadyRunningError
from spear_core.node.paths import StatePaths
from spear_core.stores import sync

__all__ = [
    "hold_state",
    "is_node_id",
    "lock_state",
    "make_directory",
    "open_run_dir",
    "write_atomically",
]

_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TO_WRITE_S = 5.0
"""How long somebody who has locked the directory may take to write down who that is."""
_LONGEST_RUN_DIR = 60
"""Bytes. A socket's path may have 107 (``man 7 unix``); below lie a plugin's and a file's name."""


@contextmanager
def hold_state(paths: StatePaths) -> Iterator[str]:
    """Make the directory private, lock it for this process and yield the node's id.

    :raises NodeAlreadyRunningError: another live process holds it; carries that one's pid.
    :raises ConfigError: it cannot be made or written, somebody else's files are in it, or a restore
        into it has not come to its end.
    """
    with lock_state(paths):
        if paths.restoring.exists():
            raise ConfigError(
                f"a restore into the state directory {paths.root} has not come to its end; run "
                "`spear restore` again"
            )
        try:
            node_id = _node_id(paths.node_id)
        except OSError as error:
            raise _unusable(paths.root, error) from error
        yield node_id


@contextmanager
def lock_state(paths: StatePaths) -> Iterator[None]:
    """Make the directory private and lock it for this process.

    :raises NodeAlreadyRunningError: another live process holds it; carries that one's pid.
    :raises ConfigError: it cannot be made or written, or somebody else's files are in it.
    """
    try:
        make_directory(paths.root)
        _refuse_foreign(paths)
        paths.root.chmod(0o700)
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(paths.root, error) from error
    try:
        _lock(descriptor, paths)
        yield
        with suppress(OSError):
            os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _refuse_foreign(paths: StatePaths) -> None:
    """A directory that is in use for something else must not be shut off from it."""
    found = {path.name for path in paths.root.iterdir()}
    foreign = sorted(found - paths.names - {"lost+found"})
    if foreign and paths.lock.name not in found:
        listed = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise ConfigError(
            f"the state directory {paths.root} holds other files ({listed}); "
            "choose a new or an empty one with --state-dir or SPEAR_STATE_DIR"
        )


def _lock(descriptor: int, paths: StatePaths) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _pid_of_holder(descriptor)
        raise NodeAlreadyRunningError(
            f"a node (pid {pid or 'unknown'}) already runs on {paths.root}; "
            "stop it, or choose another --state-dir",
            pid=pid,
        ) from None
    except OSError as error:
        raise _unusable(paths.root, error) from error
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        if error.errno not in _FULL:  # then nobody is told who it is, and that is all
            raise _unusable(paths.root, error) from error


def _pid_of_holder(descriptor: int) -> int:
    """What the other process has written; 0: nothing that is one. It may have locked the file only
    a moment ago."""
    until = time.monotonic() + _TO_WRITE_S
    while True:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        if text.isdecimal():
            return int(text)
        if time.monotonic() >= until:
            return 0
        time.sleep(0.01)


def is_node_id(text: str) -> bool:
    """Whether a node may have this id."""
    return bool(_NODE_ID.fullmatch(text))


def _node_id(path: Path) -> str:
    """The node's identity: made once, kept on disk; made anew when the file is damaged."""
    with suppress(FileNotFoundError, UnicodeDecodeError):
        found = path.read_text(encoding="ascii").strip()
        if is_node_id(found):
            return found
    made = f"n-{secrets.token_hex(8)}"
    write_atomically(path, made.encode() + b"\n")
    return made


def _unusable(root: Path, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(
        f"the state directory {root} cannot be used: {reason}"
        f"{f' ({error.filename})' if error.filename and error.filename != str(root) else ''}; "
        "choose a writable one with --state-dir or SPEAR_STATE_DIR"
    )


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new, whole. It is on
    the disk itself, under its name, when this returns."""
    make_directory(path.parent)
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(temporary, path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def make_directory(path: Path) -> None:
    """Make a private directory, and those above it, if they are not there; on the disk itself."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        with suppress(PermissionError):  # one that is somebody else's, and may not be read
            sync(each.parent)


@contextmanager
def open_run_dir(paths: StatePaths) -> Iterator[Path]:
    """An empty private directory with a short path, gone afterwards."""
    if len(os.fsencode(paths.run)) <= _LONGEST_RUN_DIR:
        shutil.rmtree(paths.run, ignore_errors=True)
        paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        run = paths.run
    else:
        run = Path(tempfile.mkdtemp(prefix="spear-"))
    ours = run.stat()
    try:
        yield run
    finally:
        with suppress(OSError):
            if os.path.samestat(ours, run.stat()):  # else somebody began anew in its place
                shutil.rmtree(run, ignore_errors=True)
