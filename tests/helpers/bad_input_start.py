"""Imports the command line once, with a tiny network in place of each; see `bad_input_child`."""

import main
from medadv_jax import cli, models
from tests.helpers.tiny import TinyNet

__all__ = ["cli", "main"]

models.MODELS.update(dict.fromkeys(models.MODELS, TinyNet))
