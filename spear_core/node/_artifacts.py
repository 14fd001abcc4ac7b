"""The artifacts deployed on this node: code by content, versions by name, all on disk.

::

    artifacts/code/<sha256>/<filename>      the code, read-only
    artifacts/names/<name>.json             every version of a name, and the next number
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from spear_core.api import Artifact, ArtifactInfo, ArtifactUpload
from spear_core.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactInUseError,
    ArtifactNotFoundError,
    InvalidRequestError,
)
from spear_core.node._artifact_records import (
    NameRecord,
    VersionRecord,
    decode_name,
    encode_name,
    settings_of,
)
from spear_core.node._state import write_atomically

__all__ = ["ArtifactStore", "parse_function"]

_HASH_INLINE_BYTES = 256 << 10
"""Hashing this takes as long as two hops to a thread and back (0.1 ms)."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FUNCTION = re.compile(r"(?P<name>[^@:]+)(?:@(?P<version>[0-9]{1,9}|latest))?(?::(?P<entry>.+))?")


def parse_function(function: str) -> tuple[str, int | None, str]:
    """``artifact[@version][:entry]`` → name, version (``None``: the latest), entry.

    :raises InvalidRequestError: it is not of that form.
    """
    match = _FUNCTION.fullmatch(function)
    if match is None:
        raise InvalidRequestError(
            f"function {function!r} is not of the form name[@version][:entry]"
        )
    version = match["version"]
    return (
        match["name"],
        int(version) if version and version != "latest" else None,
        match["entry"] or "",
    )


class ArtifactStore:
    """Artifacts on disk, and who uses them now."""

    def __init__(self, root: Path, *, warn: Callable[[str], None]) -> None:
        self._code = root / "code"
        self._names_dir = root / "names"
        self._names: dict[str, NameRecord] = {}
        self._artifacts: dict[tuple[str, int], Artifact] = {}
        self._users: Counter[tuple[str, int]] = Counter()
        self._leaving: set[tuple[str, int]] = set()
        self._staged: Counter[str] = Counter()
        self._unreadable: dict[str, str] = {}
        self._load(warn)

    def _load(self, warn: Callable[[str], None]) -> None:
        for path in sorted(self._names_dir.glob("*.json")):
            try:
                name = decode_name(path.read_bytes())
            except (OSError, ArtifactCorruptError) as error:
                why = f"cannot be read ({error})" if isinstance(error, OSError) else str(error)
                self._unreadable[path.stem] = (
                    f"artifact {path.stem!r} cannot be used: {path} {why}; "
                    "restore the file, or move it away and deploy again"
                )
                warn(self._unreadable[path.stem])
                continue
            self._remember(path.stem, name)
        if not self._unreadable:
            self._sweep()

    def _sweep(self) -> None:
        """Remove code that an earlier node had staged when it was killed."""
        with suppress(OSError):
            for directory in self._code.iterdir():
                self._remove_unused(directory.name)

    def _remember(self, name: str, record: NameRecord) -> None:
        self._names[name] = record
        for version in record.versions:
            self._artifacts.setdefault((name, version.version), self._artifact(name, version))

    def _artifact(self, name: str, version: VersionRecord) -> Artifact:
        return Artifact(
            name=name,
            version=version.version,
            digest=version.digest,
            runtime=version.runtime,
            shape=version.shape,
            path=self._code / version.digest / version.filename,
            filename=version.filename,
            reuse=version.reuse,
            **settings_of(version),
        )

    def resolve(self, function: str) -> tuple[Artifact, str]:
        """The artifact a function means, and the entry it names (or the artifact's default).

        :raises ArtifactNotFoundError: no such name or version; the message names the nearest.
        :raises InvalidRequestError: malformed.
        """
        name, version, entry = parse_function(function)
        self._refuse_unreadable(name)
        record = self._names.get(name)
        if record is None or not record.versions:
            raise ArtifactNotFoundError(
                f"no artifact named {name!r} is deployed here"
                f"{_known(self._names)}; deploy one with `spear deploy FILE --name {name}`"
            )
        number = record.versions[-1].version if version is None else version
        artifact = self._artifacts.get((name, number))
        if (name, number) in self._leaving:
            raise ArtifactNotFoundError(f"artifact {name}@{number} is being deleted")
        if artifact is None:
            have = ", ".join(str(v.version) for v in record.versions)
            raise ArtifactNotFoundError(f"artifact {name!r} has no version {number}; it has {have}")
        return artifact, entry or artifact.entry

    def _refuse_unreadable(self, name: str) -> None:
        if (problem := self._unreadable.get(name)) is not None:
            raise ArtifactCorruptError(problem)

    async def stage(self, upload: ArtifactUpload) -> str:
        """Write the code of an upload and return its digest; :meth:`unstage` must follow.

        :raises InvalidRequestError: a bad name or file name.
        :raises ArtifactCorruptError: what is stored under this name cannot be read.
        :raises ArtifactError: the disk is full or broken.
        """
        if not _NAME.fullmatch(upload.name):
            raise InvalidRequestError(
                f"artifact name {upload.name!r}: use 1 to 100 letters, digits, '-', '_' and '.', "
                "beginning with a letter or digit"
            )
        filename = upload.filename
        if not filename or "/" in filename or "\0" in filename or filename in (".", ".."):
            raise InvalidRequestError(f"file name {filename!r} is not a plain file name")
        self._refuse_unreadable(upload.name)
        digest = await trio.to_thread.run_sync(_digest, upload.content)
        path = self._code / digest / filename
        mode = 0o500 if upload.executable else 0o400
        self._staged[digest] += 1
        try:
            if not path.exists():
                await trio.to_thread.run_sync(
                    lambda: write_atomically(path, upload.content, mode=mode)
                )
        except OSError as error:
            self.unstage(digest)
            raise _cannot_store(upload.name, error) from error
        except trio.Cancelled:
            self.unstage(digest)
            raise
        return digest

    def unstage(self, digest: str) -> None:
        """Remove staged code if no version refers to it and nobody else is deploying it."""
        self._staged[digest] -= 1
        if not self._staged[digest]:
            del self._staged[digest]
            self._remove_unused(digest)

    def _remove_unused(self, digest: str) -> None:
        used = (v.digest for name in self._names.values() for v in name.versions)
        if digest not in self._staged and digest not in used:
            shutil.rmtree(self._code / digest, ignore_errors=True)

    def candidate(
        self, upload: ArtifactUpload, digest: str, *, runtime: str, shape: str, reuse: bool
    ) -> tuple[Artifact, bool]:
        """The artifact that an upload would become, and whether that version exists already."""
        version = self._version(upload, digest, runtime=runtime, shape=shape, reuse=reuse)
        record = self._names.get(upload.name)
        latest = record.versions[-1] if record and record.versions else None
        if latest and latest.asked_for() == version.asked_for():
            key = (upload.name, latest.version)
            if key not in self._leaving:
                return self._artifacts[key], True
        return self._artifact(upload.name, version), False

    def _version(
        self, upload: ArtifactUpload, digest: str, *, runtime: str, shape: str, reuse: bool
    ) -> VersionRecord:
        record = self._names.get(upload.name)
        return VersionRecord(
            version=record.next_version if record else 1,
            digest=digest,
            size=len(upload.content),
            created_at=time.time(),
            runtime=runtime,
            shape=shape,
            filename=upload.filename,
            reuse=reuse,
            **settings_of(upload),
        )

    def commit(self, upload: ArtifactUpload, candidate: Artifact) -> ArtifactInfo:
        """Make a candidate the latest version of its name, on disk and here.

        :raises ArtifactError: the disk is full or broken; nothing has changed.
        """
        version = self._version(
            upload,
            candidate.digest,
            runtime=candidate.runtime,
            shape=candidate.shape,
            reuse=candidate.reuse,
        )
        record = self._names.get(upload.name, NameRecord(next_version=1, versions=()))
        grown = NameRecord(next_version=version.version + 1, versions=(*record.versions, version))
        self._write(upload.name, grown)
        self._remember(upload.name, grown)
        return self.info(self._artifacts[upload.name, version.version])

    def _write(self, name: str, record: NameRecord) -> None:
        try:
            write_atomically(self._names_dir / f"{name}.json", encode_name(record))
        except OSError as error:
            raise _cannot_store(name, error) from error

    async def verify(self, artifact: Artifact) -> None:
        """Compare the stored code with its checksum.

        :raises ArtifactCorruptError: it differs or cannot be read.
        """
        if self._size(artifact) > _HASH_INLINE_BYTES:
            await trio.to_thread.run_sync(self._verify, artifact)
        else:
            self._verify(artifact)
            await trio.lowlevel.checkpoint()

    def _verify(self, artifact: Artifact) -> None:
        try:
            with open(artifact.path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ArtifactCorruptError(
                f"the code of {artifact.ref} cannot be read: {error}; deploy it again"
            ) from error
        if found != artifact.digest:
            raise ArtifactCorruptError(
                f"the code of {artifact.ref} is not what was deployed "
                f"(sha256 {found[:12]}…, expected {artifact.digest[:12]}…); "
                f"delete it and deploy it again"
            )

    def use(self, artifact: Artifact) -> None:
        """One unfinished task more uses it."""
        self._users[artifact.name, artifact.version] += 1

    def unuse(self, artifact: Artifact) -> None:
        """One less."""
        key = (artifact.name, artifact.version)
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]

    def _size(self, artifact: Artifact) -> int:
        versions = self._names[artifact.name].versions
        return next(v.size for v in versions if v.version == artifact.version)

    def info(self, artifact: Artifact) -> ArtifactInfo:
        """A version, as listings show it."""
        version = next(
            v for v in self._names[artifact.name].versions if v.version == artifact.version
        )
        return ArtifactInfo(
            name=artifact.name,
            version=version.version,
            digest=version.digest,
            size=version.size,
            runtime=version.runtime,
            shape=version.shape,
            filename=version.filename,
            entry=version.entry,
            created_at=version.created_at,
            in_use=self._users[artifact.name, artifact.version],
        )

    def all(self) -> list[ArtifactInfo]:
        """Every version, by name, newest first."""
        return [
            self.info(self._artifacts[name, version.version])
            for name in sorted(self._names)
            for version in reversed(self._names[name].versions)
        ]

    def deletable(self, name: str, version: int | None) -> list[Artifact]:
        """The versions that a delete means.

        :raises ArtifactNotFoundError: there is none. :raises ArtifactInUseError: one is used.
        """
        self._refuse_unreadable(name)
        record = self._names.get(name)
        wanted = [
            self._artifacts[name, v.version]
            for v in (record.versions if record else ())
            if version in (None, v.version)
        ]
        if not wanted:
            raise ArtifactNotFoundError(
                f"no artifact {name if version is None else f'{name}@{version}'!r} is deployed here"
            )
        for artifact in wanted:
            if users := self._users[name, artifact.version]:
                raise ArtifactInUseError(
                    f"{artifact.ref} is in use by {users} unfinished task"
                    f"{'s' if users > 1 else ''}; wait for them or cancel them"
                )
        return wanted

    @contextmanager
    def leaving(self, artifacts: Sequence[Artifact]) -> Iterator[None]:
        """Let nobody begin to use them while the block lasts."""
        keys = {(artifact.name, artifact.version) for artifact in artifacts}
        self._leaving |= keys
        try:
            yield
        finally:
            self._leaving -= keys

    def delete(self, artifact: Artifact) -> None:
        """Remove one version; its number is never given again."""
        record = self._names[artifact.name]
        left = tuple(v for v in record.versions if v.version != artifact.version)
        self._write(artifact.name, NameRecord(next_version=record.next_version, versions=left))
        self._names[artifact.name] = NameRecord(next_version=record.next_version, versions=left)
        del self._artifacts[artifact.name, artifact.version]
        self._remove_unused(artifact.digest)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _cannot_store(name: str, error: OSError) -> ArtifactError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ArtifactError(
        f"artifact {name!r} cannot be stored: {error.strerror or error} ({error.filename})",
        code="resource_exhausted" if full else "failed_precondition",
    )


def _known(names: Mapping[str, NameRecord]) -> str:
    known = sorted(name for name, record in names.items() if record.versions)
    return f" (there are: {', '.join(known[:8])}{', …' if len(known) > 8 else ''})" if known else ""
