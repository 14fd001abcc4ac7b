"""``python -m spear_core.cli``."""

from spear_core.cli import main

main()
