"""Landlock: the kernel's unprivileged file, network and signal restrictions, by raw system calls.

Numbers and structures are those of `linux/landlock.h`; they are the same on every architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _NET_PORT = 1, 2
_VERSION_FLAG = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2

# The file rights known to each ABI version: 13 at first, then REFER, TRUNCATE, IOCTL_DEV.
_RIGHTS_OF_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_RIGHTS = (1 << 16) - 1

READ = _EXECUTE | _READ_FILE | _READ_DIR

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _syscall(number: int, *args: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def abi() -> int:
    """The Landlock version of this kernel, 0 where there is none (or it is switched off)."""
    try:
        return _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    except OSError:
        return 0


def _ruleset(version: int, *, network: bool) -> tuple[int, int]:
    """A new ruleset's file descriptor and the file rights it handles."""
    rights = _RIGHTS_OF_ABI.get(version, _ALL_RIGHTS)
    attribute = struct.pack("=Q", rights)
    if version >= 4:
        attribute += struct.pack("=Q", 0 if network else _BIND_TCP | _CONNECT_TCP)
    if version >= 6:
        attribute += struct.pack("=Q", _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS)
    size = ctypes.c_size_t(len(attribute))
    return _syscall(_CREATE_RULESET, attribute, size, ctypes.c_uint32(0)), rights


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # a path that isn't there needs no permission
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, place)
        _syscall(
            _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0)
        )
    finally:
        os.close(place)


def restrict(
    *, read: Iterable[str], write: Iterable[str], network: bool = True, ports: Iterable[int] = ()
) -> None:
    """Restrict the calling thread, and all it starts from now on, for good.

    `read` paths may be read and executed, `write` paths also written, both with all below them;
    paths that don't exist are skipped. Without `network`, TCP is limited to connecting to `ports`
    where the kernel can do that (ABI 4). Needs `no_new_privs` (or CAP_SYS_ADMIN) set beforehand.

    Raises: OSError where the kernel has no Landlock or refuses.
    """
    version = abi()
    ruleset, handled = _ruleset(version, network=network)
    try:
        for path in read:
            _allow(ruleset, path, READ & handled)
        for path in write:
            _allow(ruleset, path, handled)
        if version >= 4 and not network:
            for port in ports:
                rule = struct.pack("=QQ", _CONNECT_TCP, port)
                kind = ctypes.c_int(_NET_PORT)
                _syscall(_ADD_RULE, ctypes.c_int(ruleset), kind, rule, ctypes.c_uint32(0))
        _syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        with contextlib.suppress(OSError):
            os.close(ruleset)
