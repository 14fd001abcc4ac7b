"""Installed requirements: one directory per set of them, made once, for every node on the cache.

::

    environments/<key>/site/            what `uv pip install --target` made; never written again
    environments/<key>/users/<node>     that node has deployed an artifact that needs it
    environments/<key>.lock             shared: a live node uses it; exclusive: somebody makes it
    environments/.new-<key>/            being made, or what is left of an installer that was killed

The key is made of the requirements and of everything else that decides what is installed for them.
A directory gets its name when it is whole, so none is ever taken for whole that is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import trio

from spear_core.api import Artifact
from spear_core.errors import DependencyError, RuntimeFault
from spear_runtime_process._config import ProcessConfig

_ASK_AGAIN_S = 0.1
_END_S = 5.0
_LAST_LINES = 12
_UNUSED_S = 30 * 86400.0
"""What no node has used for so long is removed, whoever has said that he needs it."""
_PROVIDED = "spear-sdk"
"""Is there in every agent; naming it is no mistake and installs nothing."""

Report = Callable[[str], None]


class Environments:
    """The environments that one node uses; the same directory may serve others."""

    def __init__(self, root: Path, config: ProcessConfig, *, node_id: str) -> None:
        """:param node_id: empty for a node that will not come back."""
        self._root = root
        self._config = config
        self._node_id = node_id
        self._held: dict[str, int] = {}
        """Key → descriptor with a shared lock, for the life of this object."""
        self._making: dict[str, trio.Lock] = {}

    def site(self, requirements: Sequence[str]) -> Path | None:
        """Where these are or will be importable from; ``None`` when there is nothing to install."""
        wanted = _wanted(requirements)
        return self._root / self._key(wanted) / "site" if wanted else None

    def installer(self) -> str:
        """What installs requirements here, or why nothing does."""
        try:
            return f"installed with {find_uv(self._config.uv)}"
        except RuntimeFault as error:
            return str(error)

    def _key(self, wanted: Sequence[str]) -> str:
        decided_by = [
            "1",
            sys.implementation.cache_tag or "",
            str(sysconfig.get_config_var("SOABI")),
            sysconfig.get_platform(),
            self._config.index_url,
            str(self._config.build_requirements),
            *wanted,
        ]
        return hashlib.sha256("\n".join(decided_by).encode()).hexdigest()[:32]

    async def provide(self, artifact: Artifact, report: Report) -> None:
        """Install an artifact's requirements unless they are here already.

        :raises DependencyError: they cannot be installed; has the installer's last lines.
        :raises RuntimeFault: there is no installer, or the cache cannot be written.

        **Cancellation**: ends the installer; nothing that it made is used later.
        """
        wanted = _wanted(artifact.requirements)
        if not wanted:
            return
        key = self._key(wanted)
        async with self._making.setdefault(key, trio.Lock()):
            try:
                if key not in self._held:
                    self._held[key] = await self._obtain(key, wanted, artifact.ref, report)
                self._note_use(key)
            except OSError as error:
                raise RuntimeFault(
                    f"{artifact.ref}: the cache of requirements cannot be used: {error}"
                ) from error

    async def _obtain(self, key: str, wanted: Sequence[str], who: str, report: Report) -> int:
        """A shared lock on an environment that is whole; makes it when nobody has or does."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            handle = os.open(self._lock(key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                whole = (self._root / key).exists()
                fcntl.flock(handle, (fcntl.LOCK_SH if whole else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                if self._is_current(handle, key) and whole == (self._root / key).exists():
                    if not whole:
                        await self._make(key, wanted, handle, who=who, report=report)
                        fcntl.flock(handle, fcntl.LOCK_SH)
                    return handle
            except BlockingIOError:
                report("waiting for somebody else who installs the same requirements")
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
            await trio.sleep(_ASK_AGAIN_S)

    def _is_current(self, handle: int, key: str) -> bool:
        """Whether the lock is still that of the key: who removed an environment took it along."""
        try:
            return os.path.samestat(os.fstat(handle), self._lock(key).stat())
        except FileNotFoundError:
            return False

    def _lock(self, key: str) -> Path:
        return self._root / f"{key}.lock"

    async def _make(
        self, key: str, wanted: Sequence[str], lock: int, *, who: str, report: Report
    ) -> None:
        """Install into a directory that gets its name at the end; the exclusive lock is ours."""
        new = self._root / f".new-{key}"
        await trio.to_thread.run_sync(partial(shutil.rmtree, new, ignore_errors=True))
        (new / "users").mkdir(mode=0o700, parents=True)
        file = new / "requirements.txt"
        file.write_text("".join(f"{line}\n" for line in wanted), encoding="utf-8")
        count = f"{len(wanted)} requirement{'' if len(wanted) == 1 else 's'}"
        report(f"installing {count}")
        try:
            said, status = await self._install(file, new / "site", lock, report)
            if status != 0:
                last = "\n".join(said[-_LAST_LINES:])
                raise DependencyError(f"{who}: its requirements cannot be installed:\n{last}")
            (new / "site").mkdir(exist_ok=True)  # markers may leave nothing to install
            new.rename(self._root / key)
        except BaseException:
            with trio.CancelScope(shield=True):  # ends by itself: it only removes files
                await trio.to_thread.run_sync(partial(shutil.rmtree, new, ignore_errors=True))
            raise

    async def _install(
        self, file: Path, target: Path, lock: int, report: Report
    ) -> tuple[list[str], int]:
        """Run the installer; what it said, line by line, and its exit status."""
        said: list[str] = []
        command = [
            find_uv(self._config.uv),
            *("pip", "install", "--target", str(target), "--python", sys.executable),
            *("-r", str(file), "--no-cache"),
            *("--link-mode", "copy", "--compile-bytecode", "--no-progress", "--color", "never"),
        ]
        if not self._config.build_requirements:
            command.append("--no-build")
        if self._config.index_url:
            command += ["--default-index", self._config.index_url]
        try:
            process = await trio.lowlevel.open_process(
                command,
                cwd=file.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # an installer that outlives its node keeps others away from what it writes
                pass_fds=[lock],
                start_new_session=True,
            )
        except OSError as error:
            raise RuntimeFault(
                f"the installer of requirements cannot be started: {error}"
            ) from error
        assert process.stderr is not None
        try:
            async for line in _lines(process.stderr):
                said.append(line)
                report(line)
            return said, await process.wait()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                with trio.move_on_after(_END_S, shield=True):
                    await process.wait()
            await trio.aclose_forcefully(process.stderr)

    def _note_use(self, key: str) -> None:
        """For others: this node needs it; and for the day when it is not used any more."""
        if self._node_id:
            (self._root / key / "users" / self._node_id).touch(mode=0o600)
        os.utime(self._lock(key))

    async def retain(self, artifacts: Iterable[Artifact]) -> None:
        """Remove what these artifacts do not need and no other node does."""
        needed = {self._key(wanted) for a in artifacts if (wanted := _wanted(a.requirements))}
        await trio.to_thread.run_sync(self._retain, needed)

    def _retain(self, needed: set[str]) -> None:
        with contextlib.suppress(FileNotFoundError):
            for lock in self._root.glob("*.lock"):
                key = lock.stem
                if key in needed or not re.fullmatch("[0-9a-f]{32}", key):
                    continue
                users = self._root / key / "users"
                mine = bool(self._node_id) and (users / self._node_id).exists()
                if mine:
                    (users / self._node_id).unlink()
                old = time.time() - lock.stat().st_mtime > _UNUSED_S
                if old or (mine and not any(users.iterdir())):
                    self._remove(key)
                elif (handle := self._held.pop(key, None)) is not None:
                    os.close(handle)

    def _remove(self, key: str) -> None:
        """Unless a live node uses it."""
        handle = self._held.pop(key, None)
        if handle is None:
            handle = os.open(self._lock(key), os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for place in (self._root / key, self._root / f".new-{key}"):
                shutil.rmtree(place, ignore_errors=True)
            self._lock(key).unlink(missing_ok=True)
        except BlockingIOError:
            pass  # another node uses it, or makes it just now
        finally:
            os.close(handle)

    def close(self) -> None:
        """Use none any more."""
        for handle in self._held.values():
            os.close(handle)
        self._held.clear()


def _wanted(requirements: Sequence[str]) -> list[str]:
    """What to install, in an order of its own: the same set is the same environment."""
    found = set()
    for requirement in requirements:
        name = re.match(r"[A-Za-z0-9._-]*", requirement)
        if re.sub(r"[-_.]+", "-", name[0] if name else "").lower() != _PROVIDED:
            found.add(requirement)
    return sorted(found)


def find_uv(configured: str) -> str:
    """The installer: as configured, else that of the package ``uv``, else on the path.

    :raises RuntimeFault: there is none.
    """
    if configured:
        return configured
    with contextlib.suppress(ImportError, FileNotFoundError):
        from uv import find_uv_bin

        return os.fsdecode(find_uv_bin())
    if found := shutil.which("uv"):
        return found
    raise RuntimeFault(
        "Python requirements are installed with uv, which is not there; `pip install uv`, or set "
        "plugins.runtime-process.uv"
    )


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[str]:
    rest = b""
    async for chunk in stream:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if text := line.decode("utf-8", "replace").rstrip():
                yield text
    if text := rest.decode("utf-8", "replace").rstrip():
        yield text
