"""SPEAR: a serverless platform for AI agents."""

from spear_core._marks import hookimpl

__all__ = ["__version__", "hookimpl"]

__version__ = "0.1.0"
