"""The parts of the example that are not the agent itself."""
