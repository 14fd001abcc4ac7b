"""The process that runs functions for a node: ``python -m spear_sdk.worker``."""

from __future__ import annotations

import sys

from spear_sdk._worker import main, run_worker

__all__ = ["main", "run_worker"]

if __name__ == "__main__":
    sys.exit(main())
