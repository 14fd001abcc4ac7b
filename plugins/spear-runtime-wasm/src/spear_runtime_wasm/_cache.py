"""Compiled images on disk. An image is native code that the node runs: only our own are believed.

One file an image: magic, HMAC-SHA256, image. The key is in a file beside them, readable by nobody
else, and covers the module's digest and everything the code depends on; whatever does not verify
is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import platform
import secrets
import stat
from pathlib import Path

MAGIC = b"SPEARAOT1\n"
KEY_FILE = "key"
KEY_SIZE = 32
MAC_SIZE = 32
SUFFIX = ".aot"


class ImageCache:
    """Images under `directory`, of at most `max_bytes` together. Blocking; call it in a thread.

    A directory that cannot be written costs the speed only: every failure is logged and passed by.
    """

    def __init__(
        self, directory: Path, *, version: str, max_bytes: int, log: logging.Logger
    ) -> None:
        self._directory = directory
        self._tag = f"{version} {platform.machine()}"
        self._max_bytes = max_bytes
        self._log = log

    def load(self, digest: str) -> bytes | None:
        """The image of the module with this sha256, or None when there is no good one."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
            key = self._key()
        except FileNotFoundError:
            return None
        except OSError as exc:
            self._log.warning("the image cache cannot be read: %s", exc)
            return None
        start = len(MAGIC) + MAC_SIZE
        image = data[start:]
        mac = self._mac(key, digest, image)
        if not hmac.compare_digest(data[:start], MAGIC + mac):
            self._log.warning("%s is not what was written there; compiling it again", path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return image

    def store(self, digest: str, image: bytes) -> None:
        """Keep it, whole or not at all; when there are too many, the ones unused longest go."""
        path = self._path(digest)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            mac = self._mac(self._key(), digest, image)
            _write_private(path, MAGIC + mac + image)
            self._prune(keep=path)
        except OSError as exc:
            self._log.warning("a compiled image could not be kept: %s", exc)

    def _path(self, digest: str) -> Path:
        tag = hashlib.sha256(self._tag.encode()).hexdigest()[:16]
        return self._directory / f"{digest}-{tag}{SUFFIX}"

    def _mac(self, key: bytes, digest: str, image: bytes) -> bytes:
        mac = hmac.new(key, f"{self._tag}\n{digest}\n".encode(), hashlib.sha256)
        mac.update(image)
        return mac.digest()

    def _key(self) -> bytes:
        """The key; a new one when there is none or others could have read or made it."""
        path = self._directory / KEY_FILE
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            private = stat.S_ISREG(found.st_mode) and not found.st_mode & 0o077
            if private and found.st_uid == os.geteuid() and found.st_size == KEY_SIZE:
                return path.read_bytes()
            self._log.warning("%s is not private to this user; making a new one", path)
        key = secrets.token_bytes(KEY_SIZE)
        _write_private(path, key)
        return key

    def _prune(self, keep: Path) -> None:
        entries = [(path.stat(), path) for path in self._directory.glob(f"*{SUFFIX}")]
        total = sum(found.st_size for found, _ in entries)
        for found, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
            if total <= self._max_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= found.st_size


def _write_private(path: Path, data: bytes) -> None:
    """Replace `path` with a file of mode 0600, in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
