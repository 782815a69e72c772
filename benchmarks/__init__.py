"""What `benchmarks/run.py` is made of: cases, counts, timing, ours, the peers, a report."""
