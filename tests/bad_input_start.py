"""Imports the command line once, with a tiny network in place of each; see `bad_input_child`."""

from tiny import TinyNet

import main
from medadv_jax import command_line, models

__all__ = ["command_line", "main"]

models.MODELS.update(dict.fromkeys(models.MODELS, TinyNet))
