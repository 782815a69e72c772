"""Programs for maintainers, run as `python -m tools.NAME`."""
