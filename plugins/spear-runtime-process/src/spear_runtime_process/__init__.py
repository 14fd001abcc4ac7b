"""The `process` runtime of SPEAR: commands and long-lived agents as sandboxed processes.

Nothing is imported here on purpose: the launcher process imports this package before site-packages
is on its path, and must stay small.
"""
