"""What every test stands on."""

from __future__ import annotations

import signal

# A shell starts a job in the background with SIGINT ignored, and nohup one with SIGHUP, which children
# inherit; and a command that finds a signal ignored leaves it so. The tests send both, to themselves
# and to children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
