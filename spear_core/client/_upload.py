"""Code to deploy, from a file or from memory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spear_core.api import ArtifactUpload
from spear_core.errors import InvalidRequestError

__all__ = ["Code", "make_upload", "name_for"]

Code = str | os.PathLike[str] | bytes
"""A file, by its path, or its content."""


def name_for(path: Path) -> str:
    """An artifact name made from a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("-_.")[:100] or "code"


def make_upload(
    code: Code, *, name: str, filename: str, settings: Mapping[str, Any]
) -> ArtifactUpload:
    """Read a file, or take what is there. Blocks for as long as the disk does.

    :param settings: further fields of :class:`~spear_core.api.ArtifactUpload`.
    :raises InvalidRequestError: content without a ``name`` or ``filename``, or a directory.
    :raises OSError: the file cannot be read.
    """
    if isinstance(code, bytes):
        if not name or not filename:
            raise InvalidRequestError(
                "code given as bytes needs a name and a filename: its suffix tells the runtime"
            )
        return ArtifactUpload(name=name, filename=filename, content=code, **settings)
    path = Path(code)
    if path.is_dir():
        raise InvalidRequestError(f"{path} is a directory; name the file to run")
    with path.open("rb") as file:
        content = file.read()
        executable = bool(os.fstat(file.fileno()).st_mode & 0o111)
    return ArtifactUpload(
        name=name or name_for(path),
        filename=filename or path.name,
        content=content,
        executable=executable,
        **settings,
    )
