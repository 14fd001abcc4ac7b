"""Bundles: what a hostile or damaged archive can do, and what identifies one."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from spear_core._bundle import BundleLimits, digest_of, pack, read_tree, unpack
from spear_core.errors import InvalidRequestError

LIMITS = BundleLimits(files=100, bytes=1 << 20)


def archive(*members: tuple[str, bytes, int], compress: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with these names, contents and modes, however wrong they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as made:
        for name, content, mode in members:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = mode << 16
            info.compress_type = compress
            made.writestr(info, content)
    return buffer.getvalue()


def file(name: str, content: bytes = b"x") -> tuple[str, bytes, int]:
    return name, content, stat.S_IFREG | 0o644


@pytest.fixture
def target(tmp_path: Path) -> Path:
    place = tmp_path / "target"
    place.mkdir()
    return place


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "package").mkdir(parents=True)
    (root / "main.py").write_text("import package.part\n")
    (root / "package" / "part.py").write_text("")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    return root


PATHS = ["main.py", "package/part.py", "run.sh"]


def test_what_is_packed_is_unpacked(source: Path, target: Path) -> None:
    files = unpack(pack(source, PATHS, limit=1000), target, LIMITS)
    assert [(f.path, f.executable) for f in files] == [
        ("main.py", False),
        ("package/part.py", False),
        ("run.sh", True),
    ]
    assert (target / "main.py").read_text() == "import package.part\n"
    modes = [(target / f.path).stat().st_mode & 0o777 for f in files]
    assert modes == [0o400, 0o400, 0o500]
    assert read_tree(target) == files


def test_the_same_files_are_the_same_bundle_whatever_their_dates_and_order(source: Path) -> None:
    first = pack(source, PATHS, limit=1000)
    os.utime(source / "main.py", (0, 0))
    assert pack(source, reversed(PATHS), limit=1000) == first


def test_content_path_and_mode_make_the_digest(source: Path, target: Path) -> None:
    files = unpack(pack(source, PATHS, limit=1000), target, LIMITS)
    digest = digest_of(files)
    assert digest == digest_of(reversed(files))
    changed = [
        [attrs.evolve(files[0], executable=True), *files[1:]],
        [attrs.evolve(files[0], sha256="0" * 64), *files[1:]],
        [attrs.evolve(files[0], path="other.py"), *files[1:]],
        files[1:],
    ]
    assert len({digest, *map(digest_of, changed)}) == 5


def test_a_line_end_in_a_name_cannot_stand_for_another_file(target: Path) -> None:
    content = [file("a\n" + "0" * 64 + " - b")]
    (one,) = unpack(archive(*content), target, LIMITS)
    two = [attrs.evolve(one, path="a"), attrs.evolve(one, path="b", sha256="0" * 64)]
    assert digest_of([one]) != digest_of(two)


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a/./b", "a/..", "..", "."),
        *("a\\..\\b", "x" * 1025, "C:\\x", "/"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str, target: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no plain relative path"):
        unpack(archive(file("fine"), file(name)), target, LIMITS)
    assert list(target.parent.iterdir()) == [target]
    assert list(target.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (stat.S_IFLNK | 0o777, "'link' is a symbolic link"),
        (stat.S_IFIFO | 0o644, "no regular file"),
        (stat.S_IFCHR | 0o644, "no regular file"),
        (stat.S_IFSOCK | 0o644, "no regular file"),
    ],
)
def test_only_regular_files_are_made(mode: int, said: str, target: Path) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        unpack(archive(("link", b"/etc/passwd", mode)), target, LIMITS)
    assert list(target.iterdir()) == []


def test_set_user_id_and_other_bits_are_not_taken_over(target: Path) -> None:
    unpack(archive(("tool", b"", stat.S_IFREG | 0o6777)), target, LIMITS)
    assert (target / "tool").stat().st_mode & 0o7777 == 0o500


def test_directories_are_left_out(target: Path) -> None:
    files = unpack(archive(("d/", b"", stat.S_IFDIR | 0o755), file("d/a")), target, LIMITS)
    assert [f.path for f in files] == ["d/a"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_of_a_name_are_refused(target: Path) -> None:
    with pytest.raises(InvalidRequestError, match="'a' twice"):
        unpack(archive(file("a"), file("a", b"y")), target, LIMITS)
    with pytest.raises(InvalidRequestError, match="'a' as a file and as a directory"):
        unpack(archive(file("a"), file("a/b")), target, LIMITS)


def test_a_bomb_stops_at_the_limit(target: Path) -> None:
    bomb = archive(file("zeros", bytes(64 << 20)))
    assert len(bomb) < 100_000
    with pytest.raises(InvalidRequestError, match=r"artifacts\.max_bytes"):
        unpack(bomb, target, LIMITS)
    assert (target / "zeros").stat().st_size <= LIMITS.bytes


def test_a_size_that_lies_does_not_help(target: Path) -> None:
    bomb = bytearray(archive(file("zeros", bytes(8 << 20))))
    for magic, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = bomb.index(magic) + offset
        bomb[at : at + 4] = struct.pack("<L", 10)
    with pytest.raises(InvalidRequestError):
        unpack(bytes(bomb), target, LIMITS)
    assert sum(p.stat().st_size for p in target.iterdir()) <= LIMITS.bytes


def test_files_count_together(target: Path) -> None:
    half = bytes((1 << 19) + 1)
    with pytest.raises(InvalidRequestError, match=r"artifacts\.max_bytes"):
        unpack(archive(file("a", half), file("b", half)), target, LIMITS)


def test_too_many_files_are_refused_before_they_are_read(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = archive(*(file(f"f{n}") for n in range(101)))
    with pytest.raises(InvalidRequestError, match="more than 100 files"):
        unpack(many, target, LIMITS)
    lying = bytearray(archive(*(file(f"f{n}" * 60) for n in range(1000))))
    end = lying.rindex(b"PK\x05\x06")
    lying[end + 8 : end + 12] = struct.pack("<2H", 1, 1)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("it was read"))
    with pytest.raises(InvalidRequestError, match="more than 100 files"):
        unpack(bytes(lying), target, LIMITS)
    assert list(target.iterdir()) == []


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    at = content.index(b"fine")  # the name; behind it begins the data
    return content[: at + 5] + bytes([content[at + 5] ^ 255]) + content[at + 6 :]


def encrypt(content: bytes) -> bytes:
    broken = bytearray(content)
    broken[broken.index(b"PK\x01\x02") + 8] |= 1
    return bytes(broken)


@pytest.mark.parametrize("damage", [cut, flip, encrypt, lambda _: b"", lambda _: b"no archive"])
def test_a_damaged_archive_is_refused(damage: Callable[[bytes], bytes], target: Path) -> None:
    whole = archive(file("fine", os.urandom(1000)))
    unpack(whole, target, LIMITS)
    (target / "fine").unlink()
    with pytest.raises(InvalidRequestError, match="archive"):
        unpack(damage(whole), target, LIMITS)


def test_what_is_too_much_is_not_packed(source: Path) -> None:
    size = sum((source / path).stat().st_size for path in PATHS)
    pack(source, PATHS, limit=size)
    with pytest.raises(InvalidRequestError, match=rf"more than {size - 1} bytes.*exclude"):
        pack(source, PATHS, limit=size - 1)


def test_a_tree_with_more_than_files_is_no_bundle(source: Path) -> None:
    (source / "link").symlink_to("main.py")
    with pytest.raises(OSError, match="link is no regular file"):
        read_tree(source)
    (source / "link").unlink()
    (source / "directory").symlink_to("package")
    with pytest.raises(OSError, match="directory is no regular file"):
        read_tree(source)
