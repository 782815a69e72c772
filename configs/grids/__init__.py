"""Grids of runs, for scripts/sweep.py."""
