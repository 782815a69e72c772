"""Configs of runs; `default.py` holds every field."""
