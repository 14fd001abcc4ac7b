"""What is kept on disk about the versions of a name: one JSON file per name.

The file has grown with the artifacts. What an older node wrote is read here as it is: a field it
did not know takes its default. What a newer one wrote is refused, because a field that is not
understood here would be lost with the next write.
"""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

from spear_core.api import ArtifactSettings, ArtifactState
from spear_core.errors import ArtifactCorruptError

__all__ = ["NameRecord", "VersionRecord", "decode_name", "encode_name", "settings_of"]

FORMAT = 2
"""1 had no number, and of the settings only entry, env, args, limits, required_isolation and
timeout_s."""

_SETTINGS = tuple(field.name for field in attrs.fields(ArtifactSettings))


def settings_of(value: ArtifactSettings) -> dict[str, Any]:
    """The settings of an upload, a version or an artifact, by name.

    A caller in this process may have given a list where a file has a tuple: they are the same.
    """
    settings = {name: getattr(value, name) for name in _SETTINGS}
    return {
        name: tuple(setting) if isinstance(setting, list) else setting
        for name, setting in settings.items()
    }


@attrs.frozen(kw_only=True)
class VersionRecord(ArtifactSettings):
    """One version: an artifact without its path, which depends on the directory."""

    version: int
    digest: str
    size: int
    created_at: float
    runtime: str
    shape: str
    filename: str
    reuse: bool
    bundle: bool = False
    """There are other files beside ``filename``, and ``digest`` is that of their manifest."""
    state: ArtifactState = ArtifactState.READY

    def asked_for(self) -> tuple[object, ...]:
        """Everything that was asked for: what is equal in this is the same version."""
        return attrs.astuple(
            self, recurse=False, filter=lambda field, _: field.name not in _GIVEN_BY_US
        )


_GIVEN_BY_US = frozenset({"version", "created_at", "state"})


@attrs.frozen(kw_only=True)
class NameRecord:
    """The content of a name's file."""

    next_version: int = 1
    versions: tuple[VersionRecord, ...] = ()
    latest: int | None = None
    """What the name alone means; ``None``: the newest version."""
    format: int = 1

    def find(self, version: int) -> VersionRecord | None:
        """The version of this number."""
        for each in self.versions:
            if each.version == version:
                return each
        return None

    @property
    def latest_version(self) -> VersionRecord | None:
        """What the name alone means; ``None`` when no version is left."""
        chosen = None if self.latest is None else self.find(self.latest)
        return chosen or (self.versions[-1] if self.versions else None)


def decode_name(content: bytes) -> NameRecord:
    """Read a name's file.

    :raises ArtifactCorruptError: it is damaged, or was written by a newer node.
    """
    try:
        record = msgspec.json.decode(content, type=NameRecord)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ArtifactCorruptError(f"cannot be read ({error})") from error
    if record.format > FORMAT:
        raise ArtifactCorruptError(
            f"was written by a newer version of SPEAR (format {record.format}, known here: "
            f"{FORMAT})"
        )
    return record


def encode_name(record: NameRecord) -> bytes:
    """A name's file."""
    current = attrs.evolve(record, format=FORMAT)
    return msgspec.json.format(msgspec.json.encode(current)) + b"\n"
