"""Lists the arrays of a weights file; a program of its own, see `__main__.py`."""
