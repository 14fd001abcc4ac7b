"""Frames, heads and sessions: the protocol of ``docs/wire-format.md`` over any channel."""
