"""Which artifacts would miss others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from spear_core.api import Artifact
from spear_core.node._function_names import parse_function

__all__ = ["VersionKey", "dependents"]

VersionKey = tuple[str, int]
"""A name and a version."""


def dependents(artifacts: Mapping[VersionKey, Artifact], gone: Collection[VersionKey]) -> list[str]:
    """The artifacts, by reference, that would miss a dependency without these versions.

    One that was missing a dependency before does so no more than it did.
    """
    names = {name for name, _ in gone}
    left = {key for key in artifacts if key not in gone}
    left_names = {name for name, _ in left}

    def would_miss(dependency: str) -> bool:
        name, number, _ = parse_function(dependency)
        if number is None:
            return name in names and name not in left_names
        return (name, number) in gone

    return sorted(
        artifact.ref
        for key, artifact in artifacts.items()
        if key in left and any(would_miss(dependency) for dependency in artifact.dependencies)
    )
