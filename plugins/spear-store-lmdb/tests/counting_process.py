"""A process that counts one key up by compare-and-swap, through a socket to the process that has
the store open. See ``test_many_processes.py``: ``python counting_process.py SOCKET TIMES``."""

from __future__ import annotations

import socket
import struct
import sys

REQUEST = struct.Struct("<QQ")
"""The count to write, and the revision it was read at."""

ANSWER = struct.Struct("<?QQ")
"""Whether it was written; what the count is now, and its revision."""


def main(path: str, times: int) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(path)
        count = revision = 0
        while times:
            door.sendall(REQUEST.pack(count + 1, revision))
            answer = b""
            while len(answer) < ANSWER.size:
                answer += door.recv(ANSWER.size - len(answer)) or sys.exit("hung up")
            written, count, revision = ANSWER.unpack(answer)
            times -= written


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
