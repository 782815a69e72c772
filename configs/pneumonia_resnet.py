"""Chest X-rays, ResNet50."""

from configs import default
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = default.get_config()
    config.data.name = "chest_xray"
    config.train.schedule = "cosine"  # a constant rate, the paper's, ends on a worse epoch
    return config
