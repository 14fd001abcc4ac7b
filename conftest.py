"""What every test stands on."""

from __future__ import annotations

import signal

# A shell starts a job in the background with SIGINT ignored, and nohup one with SIGHUP; children
# inherit that, and a command that finds a signal ignored leaves it so. The tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # which children do not inherit
