"""A run: the order of its stages, its directory, the check of its config; many runs: `sweep`."""
