"""Self-checks: whether the measurement itself can be trusted."""
