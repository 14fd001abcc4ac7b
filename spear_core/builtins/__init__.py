"""The parts of SPEAR that come with the core, through the same hooks as any plugin."""
