"""The type of a config, for annotations."""

from typing import Any

# An ml_collections.ConfigDict. Its own annotations say that any attribute may be None, a number
# or a list, so that no arithmetic on a field would pass a type checker; `validation.py` checks the
# values instead, once, before a run.
Config = Any
