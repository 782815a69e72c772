"""The speed suite; see benchmarks/run.py."""
