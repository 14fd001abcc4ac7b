"""File descriptors that nobody can make writable again.

A process that gets a descriptor for reading can open the file anew through ``/proc/self/fd``, for
writing if it belongs to its user, whatever namespaces it lives in. On a mount that is read-only it
cannot. So the folder of such a file is cloned once as a mount of its own that is nowhere in the
tree of files, and files are opened by it (``man 2 open_tree``, ``man 2 mount_setattr``; Linux
5.12). Where the node may not do that, a child does it in a namespace of its own: this file, as a
script.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

__all__ = ["ReadOnlyFolders"]

_OPEN_TREE, _MOUNT_SETATTR = 428, 442
"""Numbers of system calls, the same on every architecture."""
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE, _MOUNT_ATTR_RDONLY = -100, 0x1000, 1, 1
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x00020000
_HELPER_S = 10.0


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


class ReadOnlyFolders:
    """Opens files by read-only mounts of their folders, which it keeps."""

    def __init__(self) -> None:
        self._folders: dict[str, int | None] = {}

    def knows(self, fd: int) -> bool:
        """Whether :meth:`reopen` would be quick."""
        return os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[0] in self._folders

    def reopen(self, fd: int) -> int | None:
        """Another descriptor of that file; ``None`` where this machine has no such mounts, or the
        file is no longer in its place. Blocks, the first time for a folder for some milliseconds.

        **Raises** :exc:`OSError` when this process has no descriptors left.
        """
        folder, _, name = os.readlink(f"/proc/self/fd/{fd}").rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = _cloned(folder)
        mount = self._folders[folder]
        if mount is None:
            return None
        try:
            found = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=mount)
        except FileNotFoundError:
            return None
        if os.path.samestat(os.fstat(found), os.fstat(fd)):
            return found
        os.close(found)
        return None

    def close(self) -> None:
        """Let go of the mounts; files opened by them stay as they are."""
        while self._folders:
            _, mount = self._folders.popitem()
            if mount is not None:
                os.close(mount)


def _cloned(folder: str) -> int | None:
    try:
        return _clone(folder)
    except PermissionError:
        return _cloned_by_child(folder)
    except OSError:  # an old kernel
        return None


def _clone(folder: str) -> int:
    """**Raises** :exc:`OSError`."""
    mount = _call(
        _OPEN_TREE, _AT_FDCWD, folder.encode(), ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    )
    attributes = _MountAttributes(set=_MOUNT_ATTR_RDONLY)
    try:
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        _call(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)
    except OSError:
        os.close(mount)
        raise
    return mount


def _call(*arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _cloned_by_child(folder: str) -> int | None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            script = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), folder]
            try:
                subprocess.run(
                    script,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=_HELPER_S,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired):
                return None
        data, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
        return fds[0] if data and fds else None


def _main() -> None:
    """In the child: clone the folder and hand the mount over standard input, a socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(fileno=0) as parent:
        socket.send_fds(parent, [b"m"], [_clone(sys.argv[1])])


if __name__ == "__main__":
    _main()
