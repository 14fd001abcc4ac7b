"""The manifest of a backup."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from spear_core.errors import StoreCorruptError, StoreFormatError
from spear_core.node._backup_manifest import (
    BackupFile,
    CopiedStore,
    Manifest,
    check_files,
    decode_manifest,
    encode_manifest,
    list_files,
    read_manifest,
)

FULL = Manifest(
    spear="1.2",
    created_at=1.5,
    node_id="n-1",
    metadata=CopiedStore(store="lmdb", revision=7, records=3),
    files=(BackupFile(path="logs/b c\nd", size=3, sha256="0" * 64, executable=True),),
)


def nothing(count: int) -> None:
    pass


def test_there_and_back() -> None:
    assert decode_manifest(encode_manifest(FULL), "x") == FULL
    assert (FULL.bytes, FULL.objects) == (3, None)


def test_every_flipped_bit_is_found() -> None:
    content = encode_manifest(FULL)
    for at in range(len(content) - 1):
        for bit in range(8):
            broken = bytearray(content)
            broken[at] ^= 1 << bit
            with suppress(StoreCorruptError, StoreFormatError):
                assert decode_manifest(bytes(broken), "x") == FULL, (at, bit)


def test_a_newer_format_is_refused_whatever_else_is_in_it() -> None:
    content = json.dumps({"sha256": "", "backup": {"format": 2, "files": "none"}}).encode()
    with pytest.raises(StoreFormatError, match=r"format 2.* knows 1 at most"):
        decode_manifest(content, "x")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "stores/../../x", "", "stores/\0b", "node.lock", "restoring/x"]
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    file = BackupFile(path=path, size=0, sha256="")
    content = encode_manifest(Manifest(spear="", created_at=0.0, node_id="", files=(file,)))
    with pytest.raises(StoreCorruptError, match="has the file"):
        decode_manifest(content, "x")


def test_files_are_listed_and_checked(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z").write_bytes(b"123")
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "a").chmod(0o700)
    read: list[int] = []
    files = tuple(list_files(tmp_path, read.append))
    assert [(f.path, f.size, f.executable) for f in files] == [("a", 0, True), ("b/z", 3, False)]
    assert sum(read) == 3
    manifest = Manifest(spear="", created_at=0.0, node_id="", files=files)
    check_files(tmp_path, manifest, nothing)
    (tmp_path / "b" / "z").write_bytes(b"124")
    (tmp_path / "a").unlink()
    with pytest.raises(StoreCorruptError) as raised:
        check_files(tmp_path, manifest, nothing)
    assert "a is missing" in raised.value.message
    assert "b/z is not what it was" in raised.value.message


def test_a_link_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (file,) = list_files(tmp_path, nothing)
    (tmp_path / "elsewhere").write_bytes(b"1")
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    manifest = Manifest(spear="", created_at=0.0, node_id="", files=(file,))
    with pytest.raises(StoreCorruptError, match="no regular file"):
        check_files(tmp_path, manifest, nothing)


def test_a_directory_without_one(tmp_path: Path) -> None:
    with pytest.raises(StoreFormatError, match="is no backup of a node"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"{")
    with pytest.raises(StoreCorruptError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)
