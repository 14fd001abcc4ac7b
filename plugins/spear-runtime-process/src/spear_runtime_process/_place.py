"""Where an artifact's code stands while guests run it: a copy of this node's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import attrs

from spear_core.api import Artifact


@attrs.frozen(kw_only=True)
class Place:
    """The code of one artifact, ready to run."""

    file: Path
    """The file to run, under its own name, executable where that matters."""
    root: Path | None = None
    """The directory of its bundle."""
    site: Path | None = None
    """Its installed requirements."""

    @classmethod
    def of(cls, artifact: Artifact, code: Path, site: Path | None) -> Place:
        """Below ``code``, whether it is there already or not."""
        top = code / artifact.digest[:32]
        if artifact.root is None:
            return cls(file=top / (Path(artifact.filename).name or "code"), site=site)
        return cls(file=top / artifact.filename, root=top, site=site)

    def readable(self) -> list[str]:
        """The directories that a guest must be able to read for it."""
        own = self.root or self.file.parent
        return [str(own), *([str(self.site)] if self.site else [])]

    def for_agent(self) -> dict[str, str]:
        """What the SDK's worker needs to know of it."""
        told = {"SPEAR_ARTIFACT_FILE": str(self.file)}
        if self.root is not None:
            told["SPEAR_ARTIFACT_ROOT"] = str(self.root)
        if self.site is not None:
            told["SPEAR_SITE_PACKAGES"] = str(self.site)
        return told

    def for_command(self) -> dict[str, str]:
        """What a command needs to find what belongs to it."""
        told = {"SPEAR_ARTIFACT_ROOT": str(self.root)} if self.root is not None else {}
        if self.file.suffix == ".py" and (self.root or self.site):
            told["PYTHONPATH"] = ":".join(str(path) for path in (self.root, self.site) if path)
        return told


def install(artifact: Artifact, place: Place) -> None:
    """Copy an artifact's code to its place, whole or not at all; blocking.

    Raises: OSError.
    """
    if place.root is not None:
        _install_tree(artifact, place.root)
    else:
        _install_file(artifact.path, place.file)


def _install_file(source: Path, place: Path) -> None:
    """Readable and executable by its owner only."""
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=place.parent)
    with open(descriptor, "wb") as target, source.open("rb") as code:
        shutil.copyfileobj(code, target)
    Path(name).chmod(0o500)
    Path(name).replace(place)


def _install_tree(artifact: Artifact, root: Path) -> None:
    assert artifact.root is not None
    if root.exists():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=root.parent))
    try:
        shutil.copytree(artifact.root, temporary, dirs_exist_ok=True)
        for directory, _, _ in os.walk(temporary):
            Path(directory).chmod(0o700)
        (temporary / artifact.filename).chmod(0o500)
        with contextlib.suppress(FileExistsError, OSError):  # two prepares at once
            temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not root.exists():
        raise OSError(f"{root} cannot be made")
