"""The artifacts deployed on this node: code by content, versions by name, all on disk.

::

    artifacts/code/<sha256>/…               the code, read-only (:mod:`spear_core.node._code`)

Every version of a name, its next number and the latest are in the metadata store if that lasts,
else in a file ``artifacts/names/<name>.json`` (:mod:`spear_core.node._names`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio

from spear_core._bundle import BundleLimits
from spear_core.api import (
    Artifact,
    ArtifactConfig,
    ArtifactDetails,
    ArtifactInfo,
    ArtifactSettings,
    ArtifactState,
    ArtifactUpload,
)
from spear_core.errors import (
    ArtifactCorruptError,
    ArtifactDisabledError,
    ArtifactInUseError,
    ArtifactNotFoundError,
    DependencyError,
    InvalidRequestError,
)
from spear_core.node._artifact_records import (
    NameRecord,
    VersionRecord,
    settings_of,
)
from spear_core.node._code import CodeStore, Staged
from spear_core.node._dependents import VersionKey, dependents
from spear_core.node._function_names import check_artifact_name, parse_artifact, parse_function
from spear_core.node._names import FileNames, NameRecords

__all__ = ["ArtifactStore"]

_DEFAULTS = ArtifactConfig()


class ArtifactStore:
    """Artifacts on disk, and who uses them now."""

    def __init__(
        self,
        root: Path,
        *,
        warn: Callable[[str], None],
        config: ArtifactConfig = _DEFAULTS,
        names: NameRecords | None = None,
        sweep: bool = True,
    ) -> None:
        """:param names: by default, files. :param sweep: remove code that no version refers to."""
        limits = BundleLimits(files=config.max_files, bytes=config.max_bytes)
        self.code = CodeStore(root / "code", limits, in_use=self._digests)
        self._records = FileNames(root / "names") if names is None else names
        self._names: dict[str, NameRecord] = {}
        self._artifacts: dict[VersionKey, Artifact] = {}
        self._users: Counter[VersionKey] = Counter()
        self._leaving: set[VersionKey] = set()
        self._preparing: dict[object, ArtifactInfo] = {}
        self._unreadable: dict[str, str] = {}
        self._writing = trio.Lock()
        self._load(warn, sweep=sweep)

    def _load(self, warn: Callable[[str], None], *, sweep: bool) -> None:
        names, problems = self._records.load()
        self._unreadable = dict(problems)
        for name, record in sorted(names.items()):
            self._remember(name, record)
        for problem in self._unreadable.values():
            warn(problem)
        if sweep and not self._unreadable:
            self.code.sweep()

    def _digests(self) -> set[str]:
        return {v.digest for name in self._names.values() for v in name.versions}

    def _remember(self, name: str, record: NameRecord) -> None:
        self._names[name] = record
        for version in record.versions:
            self._artifacts.setdefault((name, version.version), self._artifact(name, version))

    def _artifact(self, name: str, version: VersionRecord) -> Artifact:
        place = self.code.place(version.digest)
        return Artifact(
            name=name,
            version=version.version,
            digest=version.digest,
            runtime=version.runtime,
            shape=version.shape,
            path=place / version.filename,
            filename=version.filename,
            root=place if version.bundle else None,
            reuse=version.reuse,
            **settings_of(version),
        )

    # What a name means ---------------------------------------------------------------------------

    def resolve(self, function: str) -> tuple[Artifact, str]:
        """The artifact a function means, and the entry it names (or the artifact's default).

        :raises ArtifactNotFoundError: no such name or version; the message names the nearest.
        :raises ArtifactDisabledError: an operator has disabled it.
        :raises DependencyError: an artifact it depends on is not there.
        :raises InvalidRequestError: malformed.
        """
        name, number, entry = parse_function(function)
        version = self._version(name, number)
        if version.state is ArtifactState.DISABLED:
            raise ArtifactDisabledError(
                f"artifact {name}@{version.version} is disabled; `spear artifacts enable "
                f"{name}@{version.version}` lets it run again, `spear artifacts promote "
                f"{name}@VERSION` makes another version the latest"
            )
        artifact = self._artifacts[name, version.version]
        if artifact.dependencies:
            self.check_dependencies(artifact.ref, artifact.dependencies)
        return artifact, entry or artifact.entry

    def version(self, ref: str) -> Artifact:
        """The artifact ``name@version``, in whatever state. :raises ArtifactNotFoundError: there
        is none. :raises ArtifactCorruptError: its record cannot be read."""
        name, number, _ = parse_function(ref)
        return self._artifacts[name, self._version(name, number).version]

    def _version(self, name: str, number: int | None) -> VersionRecord:
        """A version that is not about to go. :raises ArtifactNotFoundError: there is none."""
        self._refuse_unreadable(name)
        record = self._names.get(name)
        if record is None or not record.versions:
            raise ArtifactNotFoundError(
                f"no artifact named {name!r} is deployed here"
                f"{_known(self._names)}; deploy one with `spear deploy FILE --name {name}`"
            )
        version = record.latest_version if number is None else record.find(number)
        if version is None:
            have = ", ".join(str(v.version) for v in record.versions)
            raise ArtifactNotFoundError(f"artifact {name!r} has no version {number}; it has {have}")
        if (name, version.version) in self._leaving:
            raise ArtifactNotFoundError(f"artifact {name}@{version.version} is being deleted")
        return version

    def _refuse_unreadable(self, name: str) -> None:
        if (problem := self._unreadable.get(name)) is not None:
            raise ArtifactCorruptError(problem)

    def check_dependencies(self, who: str, dependencies: Iterable[str]) -> None:
        """:raises DependencyError: names the first that is not deployed here.

        :raises InvalidRequestError: one is not of the form ``name[@version]``.
        """
        for dependency in dependencies:
            name, number = parse_artifact(dependency, what=f"{who}: the dependency ")
            try:
                self._version(name, number)
            except (ArtifactNotFoundError, ArtifactCorruptError) as error:
                raise DependencyError(f"{who} depends on {dependency!r}: {error}") from error

    # A deploy ------------------------------------------------------------------------------------

    async def stage(self, upload: ArtifactUpload) -> Staged:
        """Write the code of an upload; :meth:`CodeStore.unstage` must follow.

        :raises InvalidRequestError: a bad name or file name, or a bad bundle.
        :raises ArtifactCorruptError: what is stored under this name cannot be read.
        :raises ArtifactError: the disk is full or broken.
        """
        check_artifact_name(upload.name)
        self._refuse_unreadable(upload.name)
        return await self.code.stage(upload)

    def candidate(
        self, upload: ArtifactUpload, staged: Staged, *, runtime: str, shape: str, reuse: bool
    ) -> tuple[VersionRecord, bool]:
        """The version that an upload would become, and whether it is the latest already."""
        record = self._names.get(upload.name, NameRecord())
        version = VersionRecord(
            version=record.next_version,
            digest=staged.digest,
            size=staged.size,
            created_at=time.time(),
            runtime=runtime,
            shape=shape,
            filename=upload.filename,
            bundle=upload.bundle,
            reuse=reuse,
            **settings_of(upload),
        )
        latest = self._same_as_latest(upload.name, version)
        return (version, False) if latest is None else (latest, True)

    @contextmanager
    def preparing(self, name: str, candidate: VersionRecord) -> Iterator[Artifact]:
        """Show a candidate in listings while its runtime gets it ready; yields it as artifact."""
        artifact = self._artifact(name, candidate)
        key = object()
        info = self._describe(name, candidate)
        self._preparing[key] = attrs.evolve(info, state=ArtifactState.PREPARING, latest=False)
        try:
            yield artifact
        finally:
            del self._preparing[key]

    def report(self, artifact: Artifact, message: str) -> None:
        """Take note of what is being done for an artifact that is being prepared."""
        for key, info in self._preparing.items():
            if (info.name, info.version) == (artifact.name, artifact.version):
                self._preparing[key] = attrs.evolve(info, message=message)

    async def commit(self, name: str, candidate: VersionRecord) -> ArtifactInfo:
        """Make a candidate the latest version of its name, on disk and here.

        It gets the number that is next now, or is the latest version if that has become the same:
        others may have deployed since it was made.

        :raises ArtifactError: the disk is full or broken; nothing has changed.
        :raises StoreError: likewise. :raises DependencyError: one has gone meanwhile.
        """
        async with self._writing:
            record = self._names.get(name, NameRecord())
            if (same := self._same_as_latest(name, candidate)) is not None:
                return self._describe(name, same)
            self.check_dependencies(name, candidate.dependencies)
            version = attrs.evolve(candidate, version=record.next_version)
            grown = attrs.evolve(
                record,
                next_version=version.version + 1,
                versions=(*record.versions, version),
                latest=version.version,
            )
            await self._write(name, grown)
            self._remember(name, grown)
            return self._describe(name, version)

    def _same_as_latest(self, name: str, candidate: VersionRecord) -> VersionRecord | None:
        """The latest version of a name, if it is just what is asked for."""
        latest = self._names.get(name, NameRecord()).latest_version
        if latest is None or (name, latest.version) in self._leaving:
            return None
        return latest if latest.asked_for() == candidate.asked_for() else None

    async def _write(self, name: str, record: NameRecord) -> None:
        await self._records.write(name, record)
        self._names[name] = record

    # Use -----------------------------------------------------------------------------------------

    async def verify(self, artifact: Artifact) -> None:
        """Compare the stored code with its checksum.

        :raises ArtifactCorruptError: it differs or cannot be read.
        """
        record = self._names[artifact.name].find(artifact.version)
        await self.code.verify(artifact, record.size if record else 0)

    def use(self, artifact: Artifact) -> None:
        """One unfinished task more uses it."""
        self._users[artifact.name, artifact.version] += 1

    def unuse(self, artifact: Artifact) -> None:
        """One less."""
        key = (artifact.name, artifact.version)
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]

    # Listings ------------------------------------------------------------------------------------

    def _describe(self, name: str, version: VersionRecord) -> ArtifactInfo:
        latest = self._names[name].latest_version if name in self._names else None
        leaving = (name, version.version) in self._leaving
        return ArtifactInfo(
            name=name,
            version=version.version,
            digest=version.digest,
            size=version.size,
            runtime=version.runtime,
            shape=version.shape,
            filename=version.filename,
            entry=version.entry,
            created_at=version.created_at,
            in_use=self._users[name, version.version],
            state=ArtifactState.DELETING if leaving else version.state,
            latest=latest is not None and latest.version == version.version,
        )

    def info(self, name: str, version: int) -> ArtifactInfo:
        """A version, as listings show it. :raises ArtifactNotFoundError: there is none."""
        return self._describe(name, self._version(name, version))

    def details(self, ref: str) -> ArtifactDetails:
        """A version with all its settings; ``ref`` is ``name[@version]``.

        :raises ArtifactNotFoundError: there is none. :raises InvalidRequestError: malformed.
        """
        name, number = parse_artifact(ref)
        version = self._version(name, number)
        return ArtifactDetails(
            info=self._describe(name, version),
            settings=ArtifactSettings(**settings_of(version)),
            bundle=version.bundle,
            reuse=version.reuse,
            dependents=tuple(self._dependents({(name, version.version)})),
        )

    def all(self) -> list[ArtifactInfo]:
        """Every version, by name, newest first; also those that are being prepared."""
        kept = [
            self._describe(name, version)
            for name, record in self._names.items()
            for version in record.versions
        ]
        return sorted((*kept, *self._preparing.values()), key=lambda a: (a.name, -a.version))

    def of_runtime(self, runtime: str) -> list[Artifact]:
        """Every artifact that this runtime runs."""
        return [artifact for artifact in self._artifacts.values() if artifact.runtime == runtime]

    def latest(self) -> list[Artifact]:
        """Every version that a name alone means, of those that take tasks."""
        found = [(name, record.latest_version) for name, record in self._names.items()]
        return [
            self._artifacts[name, version.version]
            for name, version in found
            if version is not None
            and version.state is ArtifactState.READY
            and (name, version.version) not in self._leaving
        ]

    # Changes -------------------------------------------------------------------------------------

    async def set_latest(self, name: str, version: int) -> ArtifactInfo:
        """Let the name alone mean this version.

        :raises ArtifactNotFoundError: there is none. :raises ArtifactDisabledError: it is disabled.
        """
        async with self._writing:
            found = self._version(name, version)
            if found.state is not ArtifactState.READY:
                raise ArtifactDisabledError(
                    f"artifact {name}@{version} is {found.state.value} and cannot be the latest; "
                    f"`spear artifacts enable {name}@{version}` first"
                )
            await self._write(name, attrs.evolve(self._names[name], latest=version))
            return self._describe(name, found)

    async def set_state(self, name: str, version: int, state: ArtifactState) -> ArtifactInfo:
        """Enable or disable a version.

        :raises ArtifactNotFoundError: there is none. :raises InvalidRequestError: another state.
        """
        if state not in (ArtifactState.READY, ArtifactState.DISABLED):
            raise InvalidRequestError(
                f"an artifact can be made 'ready' or 'disabled', not {state.value!r}"
            )
        async with self._writing:
            found = attrs.evolve(self._version(name, version), state=state)
            record = self._names[name]
            versions = tuple(found if v.version == version else v for v in record.versions)
            await self._write(name, attrs.evolve(record, versions=versions))
            return self._describe(name, found)

    def deletable(self, name: str, version: int | None) -> list[Artifact]:
        """The versions that a delete means.

        :raises ArtifactNotFoundError: there is none.
        :raises ArtifactInUseError: one is used, or another artifact depends on one.
        """
        self._refuse_unreadable(name)
        record = self._names.get(name, NameRecord())
        wanted = [
            self._artifacts[name, v.version]
            for v in record.versions
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
        what = name if version is None else f"{name}@{version}"
        self._refuse_missed({(name, a.version) for a in wanted}, what)
        return wanted

    def _refuse_missed(self, gone: set[VersionKey], what: str) -> None:
        if dependents := self._dependents(gone):
            raise ArtifactInUseError(
                f"{', '.join(dependents)} depend{'s' if len(dependents) == 1 else ''} on {what}; "
                "delete that first"
            )

    def _dependents(self, gone: set[VersionKey]) -> list[str]:
        """Artifacts that would miss a dependency without these versions."""
        return dependents(self._artifacts, gone)

    @contextmanager
    def leaving(self, artifacts: Sequence[Artifact]) -> Iterator[None]:
        """Let nobody begin to use them while the block lasts."""
        keys = {(artifact.name, artifact.version) for artifact in artifacts}
        self._leaving |= keys
        try:
            yield
        finally:
            self._leaving -= keys

    async def delete(self, artifact: Artifact) -> None:
        """Remove one version; its number is never given again. When it was the latest, the newest
        that is left is.

        :raises ArtifactInUseError: another one has come meanwhile that depends on it.
        """
        async with self._writing:
            key = (artifact.name, artifact.version)
            self._refuse_missed({key, *self._leaving}, artifact.ref)
            record = self._names[artifact.name]
            left = tuple(v for v in record.versions if v.version != artifact.version)
            latest = None if record.latest == artifact.version else record.latest
            await self._write(artifact.name, attrs.evolve(record, versions=left, latest=latest))
            del self._artifacts[key]
            self.code.remove_unused(artifact.digest)


def _known(names: Mapping[str, NameRecord]) -> str:
    known = sorted(name for name, record in names.items() if record.versions)
    return f" (there are: {', '.join(known[:8])}{', …' if len(known) > 8 else ''})" if known else ""
