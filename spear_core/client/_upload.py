"""Code to deploy, from a file or from memory."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from spear_core.api import ArtifactUpload
from spear_core.errors import InvalidRequestError

__all__ = ["Code", "make_upload", "name_for"]

Code = str | os.PathLike[str] | bytes
"""A file, by its path, or its content."""
_ARGUMENTS = {"name", "filename", "content"}
"""What is said about code beside its settings."""


def name_for(path: Path) -> str:
    """An artifact name made from a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("-_.")[:100] or "code"


def make_upload(
    code: Code, *, name: str, filename: str, settings: Mapping[str, Any]
) -> ArtifactUpload:
    """Read a file, or take what is there. Blocks for as long as the disk does.

    :param settings: further fields of :class:`~spear_core.api.ArtifactUpload`.
    :raises InvalidRequestError: content without a ``name`` or ``filename``, a directory, or a
        setting that cannot be.
    :raises TypeError: there is no such setting; the message names those there are.
    :raises OSError: the file cannot be read.
    """
    _check_names(settings)
    if isinstance(code, bytes):
        if not name or not filename:
            raise InvalidRequestError(
                "code given as bytes needs a name and a filename: its suffix tells the runtime"
            )
        return _upload(settings, name=name, filename=filename, content=code)
    path = Path(code)
    if path.is_dir():
        raise InvalidRequestError(f"{path} is a directory; name the file to run")
    with path.open("rb") as file:
        content = file.read()
        executable = bool(os.fstat(file.fileno()).st_mode & 0o111)
    return _upload(
        {"executable": executable, **settings},
        name=name or name_for(path),
        filename=filename or path.name,
        content=content,
    )


def _check_names(settings: Mapping[str, Any]) -> None:
    known = {field.name for field in attrs.fields(ArtifactUpload)} - _ARGUMENTS
    for name in settings:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {similar[0]!r}?)" if similar else ""
            raise TypeError(
                f"an artifact has no setting {name!r}{hint}; it has {', '.join(sorted(known))}"
            )


def _upload(settings: Mapping[str, Any], **more: Any) -> ArtifactUpload:
    try:
        return ArtifactUpload(**settings, **more)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"settings: {error}") from error
