"""A run: the order of its stages, its directory, its config; many runs: `sweep`."""
