"""Artifacts: records, and the code on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import trio
from trio.from_thread import check_cancelled

from spear_core._bundle import digest_of, read_tree
from spear_core.api import MetadataStore
from spear_core.node._artifact_records import NameRecord, VersionRecord
from spear_core.node._backup_files import remove_tree
from spear_core.node._finding import Finding
from spear_core.node._names import NAMES, VERSIONS, FileNames, open_store_names
from spear_core.node._task_check import every_key
from spear_core.node.paths import StatePaths

__all__ = ["check_artifacts"]


async def check_artifacts(
    paths: StatePaths, store: MetadataStore | None
) -> tuple[list[Finding], frozenset[str]]:
    """Compare every version with its code, and all code with the versions; and every
    ``name@version`` there is.

    :param store: has the names; ``None``: files have them.
    """
    files = FileNames(paths.artifacts / "names")
    findings: list[Finding] = []
    names, problems = files.load()
    if store is not None:
        kept = await open_store_names(store, FileNames(paths.root / "none"), warn=_ignore)
        in_store, more = kept.load()
        names, problems = {**names, **in_store}, {**problems, **more}
        findings += await _versions_of_nobody(store, set(in_store) | set(more))
    findings += [Finding(f"artifact {name!r}", text, lost=True) for name, text in problems.items()]
    found = await trio.to_thread.run_sync(
        partial(_compare, paths.artifacts / "code", names, complete=not problems)
    )
    refs = {f"{name}@{v.version}" for name, record in names.items() for v in record.versions}
    return findings + found, frozenset(refs)


def _ignore(text: str) -> None:
    pass


async def _versions_of_nobody(store: MetadataStore, known: set[str]) -> list[Finding]:
    """Versions that were written when their name was not, yet."""
    found = []
    async for item in every_key(store, VERSIONS):
        name, _, number = item.key[len(VERSIONS) :].decode(errors="replace").rpartition("/")
        if name in known:
            continue
        text = f"has no name: there is no {(NAMES + name.encode()).decode()!r}"
        found.append(
            Finding(
                f"version {number} of artifact {name!r}",
                text,
                repair=partial(store.delete, item.key),
            )
        )
    return found


def _compare(code: Path, names: Mapping[str, NameRecord], *, complete: bool) -> list[Finding]:
    """Blocks. :param complete: no version is unknown, so that code of none belongs to nobody."""
    digests: dict[str, str] = {}
    found = []
    for name, record in sorted(names.items()):
        for version in record.versions:
            check_cancelled()
            if version.digest not in digests:
                digests[version.digest] = _difference(code / version.digest, version)
            if what := digests[version.digest]:
                where = f"artifact {name}@{version.version}"
                found.append(Finding(where, f"{what}; deploy it again", lost=True))
    if complete:
        found += _strays(code, digests)
    return found


def _difference(place: Path, version: VersionRecord) -> str:
    """What is wrong with code; empty: nothing."""
    try:
        if version.bundle:
            digest = digest_of(read_tree(place))
        else:
            with (place / version.filename).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        return f"its code is missing: {error.filename}"
    except OSError as error:
        return f"its code cannot be read: {error}"
    return "" if digest == version.digest else f"its code in {place} is not what was deployed"


def _strays(code: Path, digests: Mapping[str, str]) -> Iterator[Finding]:
    try:
        paths = sorted(code.iterdir())
    except OSError:
        return
    for path in paths:
        if path.name not in digests:
            yield Finding(
                f"the code {path}",
                "belongs to no artifact",
                repair=partial(trio.to_thread.run_sync, remove_tree, path),
                expected=True,
            )
