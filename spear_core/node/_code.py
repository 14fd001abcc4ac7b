"""Code on disk, by content: one file, or the files of a bundle in their own tree.

::

    <sha256 of the file>/<filename>       one file, as it was deployed
    <sha256 of the manifest>/…            the files of a bundle; their directories are read-only
    .new-…                                what is being unpacked, or was when a node was killed
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import trio

from spear_core._bundle import BundleLimits, digest_of, read_tree, unpack
from spear_core.api import Artifact, ArtifactUpload
from spear_core.errors import ArtifactCorruptError, ArtifactError, InvalidRequestError
from spear_core.node._state import make_directory, write_atomically
from spear_core.stores import sync

__all__ = ["CodeStore", "Staged", "cannot_store"]

_HASH_INLINE_BYTES = 256 << 10
"""Hashing this takes as long as two hops to a thread and back (0.1 ms)."""
_HEAD_BYTES = 1 << 16
"""How much of a file its runtime is recognised by; an import may stand below a long comment."""
_NEW = ".new-"


@attrs.frozen(kw_only=True)
class Staged:
    """Code that is on disk while somebody deploys it."""

    digest: str
    size: int
    """Bytes, of all files together."""
    head: bytes = attrs.field(repr=False)
    """The first 65,536 bytes of the file to run."""


class CodeStore:
    """The directory ``code`` of a node's artifacts."""

    def __init__(self, root: Path, limits: BundleLimits, *, in_use: Callable[[], set[str]]) -> None:
        """:param in_use: the digests that some version refers to."""
        self._root = root
        self._limits = limits
        self._in_use = in_use
        self._staged: Counter[str] = Counter()
        self._holders = 0
        self._held: set[str] = set()
        """What would have been removed while somebody holds it."""

    def place(self, digest: str) -> Path:
        """The directory of this code."""
        return self._root / digest

    def sweep(self) -> None:
        """Remove what an earlier node had staged when it was killed."""
        used = self._in_use()
        with suppress(OSError):
            for path in self._root.iterdir():
                if path.name not in used:
                    _remove_tree(path)
                    continue
                for unfinished in path.glob(f"{_NEW}*"):
                    unfinished.unlink(missing_ok=True)

    async def stage(self, upload: ArtifactUpload) -> Staged:
        """Write the code of an upload; :meth:`unstage` must follow.

        What is there already is compared first, and made anew when it was damaged.

        :raises InvalidRequestError: a bad file name or bundle, or too large.
        :raises ArtifactError: the disk is full or broken.

        **Cancellation**: nothing is staged.
        """
        work = self._stage_bundle if upload.bundle else self._stage_file
        made: list[str] = []

        def begin(digest: str) -> None:
            trio.from_thread.run_sync(self._staged.update, [digest])
            made.append(digest)

        try:
            return await trio.to_thread.run_sync(work, upload, begin)
        except BaseException as error:
            if made:
                self._leave(made[0])
            if isinstance(error, OSError):
                raise cannot_store(upload.name, error) from error
            raise

    def _stage_file(self, upload: ArtifactUpload, begin: Callable[[str], None]) -> Staged:
        _check_file_name(upload.filename)
        content = upload.content
        if len(content) > self._limits.bytes:
            raise InvalidRequestError(
                f"{upload.filename} has {len(content)} bytes; {self._limits.bytes} are allowed "
                "(artifacts.max_bytes)"
            )
        digest = hashlib.sha256(content).hexdigest()
        begin(digest)
        path = self._root / digest / upload.filename
        if _file_digest(path) != digest:
            write_atomically(path, content, mode=0o500 if upload.executable else 0o400)
        return Staged(digest=digest, size=len(content), head=content[:_HEAD_BYTES])

    def _stage_bundle(self, upload: ArtifactUpload, begin: Callable[[str], None]) -> Staged:
        make_directory(self._root)
        temporary = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._root))
        with _removed_on_failure(temporary):
            files = unpack(upload.content, temporary, self._limits)
            if upload.filename not in {file.path for file in files}:
                raise InvalidRequestError(
                    f"the bundle has no file {upload.filename!r}, which is the one to run"
                )
            with open(temporary / upload.filename, "rb") as file:
                head = file.read(_HEAD_BYTES)
            digest = digest_of(files)
            begin(digest)
            self._install(temporary, self._root / digest)
        return Staged(digest=digest, size=sum(file.size for file in files), head=head)

    def _install(self, temporary: Path, place: Path) -> None:
        """Give an unpacked tree its place, unless the same is there and sound."""
        if place.exists() and _tree_digest(place) != place.name:
            _remove_tree(place)
        _protect(temporary)
        try:
            temporary.rename(place)
            sync(self._root)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _remove_tree(temporary)  # it is there already, or somebody else was faster

    def unstage(self, staged: Staged) -> None:
        """Remove staged code if no version refers to it and nobody else is deploying it."""
        self._leave(staged.digest)

    def _leave(self, digest: str) -> None:
        self._staged[digest] -= 1
        if not self._staged[digest]:
            del self._staged[digest]
            self.remove_unused(digest)

    def remove_unused(self, digest: str) -> None:
        """Remove code unless a version refers to it or somebody is deploying it."""
        if self._holders:
            self._held.add(digest)
        elif digest not in self._staged and digest not in self._in_use():
            _remove_tree(self._root / digest)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Remove no code before the block ends."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                held, self._held = self._held, set()
                for digest in held:
                    self.remove_unused(digest)

    async def verify(self, artifact: Artifact, size: int) -> None:
        """Compare stored code with its checksum.

        :raises ArtifactCorruptError: it differs or cannot be read.
        """
        if artifact.root is not None or size > _HASH_INLINE_BYTES:
            await trio.to_thread.run_sync(_verify, artifact)
        else:
            _verify(artifact)
            await trio.lowlevel.checkpoint()


def _verify(artifact: Artifact) -> None:
    try:
        if artifact.root is not None:
            found = digest_of(read_tree(artifact.root))
        else:
            with open(artifact.path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactCorruptError(
            f"the code of {artifact.ref} cannot be read: {error}; deploy it again"
        ) from error
    if found != artifact.digest:
        raise ArtifactCorruptError(
            f"the code of {artifact.ref} is not what was deployed "
            f"(sha256 {found[:12]}…, expected {artifact.digest[:12]}…); deploy it again"
        )


def _check_file_name(filename: str) -> None:
    if not filename or "/" in filename or "\0" in filename or filename in (".", ".."):
        raise InvalidRequestError(f"file name {filename!r} is not a plain file name")
    try:
        os.fsencode(filename)
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"file name {filename!r} cannot be stored here: the locale of the node is"
            f" {error.encoding}; start it with a UTF-8 locale, or with PYTHONUTF8=1"
        ) from error


def _file_digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, PermissionError):
        return ""


def _tree_digest(root: Path) -> str:
    try:
        return digest_of(read_tree(root))
    except OSError:
        return ""


@contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _remove_tree(path)
        raise


def _protect(root: Path) -> None:
    """Nobody adds files to a bundle, not even a cache of compiled modules; and its names are on the
    disk itself."""
    for directory, _, _ in os.walk(root, topdown=False):
        sync(Path(directory))
        Path(directory).chmod(0o500)


def _remove_tree(root: Path) -> None:
    with suppress(OSError):
        for directory, _, _ in os.walk(root):
            Path(directory).chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)


def cannot_store(name: str, error: OSError) -> ArtifactError:
    """What a full or broken disk means to who deploys."""
    where = f" ({error.filename})" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ArtifactError(
        f"artifact {name!r} cannot be stored: {error.strerror or error}{where}",
        code="resource_exhausted" if full else "failed_precondition",
    )
