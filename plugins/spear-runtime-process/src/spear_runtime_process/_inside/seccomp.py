"""A seccomp filter that takes away the system calls no guest needs and many exploits do.

It is a deny list on purpose: guests are arbitrary programs, and what remains is also held by
Landlock or namespaces. Denied calls fail with EPERM instead of killing the process, because
programs probe for features.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct

_LD_W_ABS, _JEQ_K, _JGE_K, _JSET_K, _RET_K = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARCH, _ARG0 = 0, 4, 16
_CLONE_NEWUSER = 0x10000000
_CLONE3 = 435  # same number on every architecture; its flags are behind a pointer
_X32_BIT = 0x40000000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

# name: (x86_64, aarch64); None where the architecture has no such call
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}

# machine: (audit architecture, column of the table, number of clone)
_MACHINES = {"x86_64": (0xC000003E, 0, 56), "aarch64": (0xC00000B7, 1, 220)}

_libc = ctypes.CDLL(None, use_errno=True)


def available() -> bool:
    """Whether there is a filter for this architecture and the kernel takes filters."""
    if platform.machine() not in _MACHINES:
        return False
    # A null filter: EFAULT from a kernel that would have read it, EINVAL or ENOSYS otherwise.
    _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def _statement(code: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, 0, 0, value)


def _jump(code: int, value: int, yes: int, no: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


@functools.cache
def program() -> bytes:
    """The filter as an array of `struct sock_filter`, also what `bwrap --seccomp` takes.

    Made once; a launcher calls this before it forks.
    """
    architecture, column, clone = _MACHINES[platform.machine()]
    numbers = [row[column] for row in _DENIED.values()]
    denied = [number for number in numbers if number is not None]
    deny = _statement(_RET_K, _ERRNO | errno.EPERM)
    code = [
        _statement(_LD_W_ABS, _ARCH),
        _jump(_JEQ_K, architecture, 1, 0),
        deny,
        _statement(_LD_W_ABS, _NR),
        _jump(_JGE_K, _X32_BIT, 0, 1),
        deny,
        _jump(_JEQ_K, _CLONE3, 0, 1),
        # "not there" makes the C library fall back to clone, whose flags can be looked at
        _statement(_RET_K, _ERRNO | errno.ENOSYS),
    ]
    for left, number in zip(range(len(denied), 0, -1), denied, strict=True):
        code.append(_jump(_JEQ_K, number, left + 3, 0))
    code += [
        _jump(_JEQ_K, clone, 0, 2),
        _statement(_LD_W_ABS, _ARG0),
        _jump(_JSET_K, _CLONE_NEWUSER, 1, 0),
        _statement(_RET_K, _ALLOW),
        deny,
    ]
    return b"".join(code)


def load(filter_program: bytes) -> None:
    """Put the filter on the calling thread and all it starts. Needs `no_new_privs`.

    Raises: OSError where the kernel refuses.
    """
    buffer = ctypes.create_string_buffer(filter_program, len(filter_program))
    header = struct.pack("@HP", len(filter_program) // 8, ctypes.addressof(buffer))
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
