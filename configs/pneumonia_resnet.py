"""Chest X-rays, ResNet50."""

from configs import default
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = default.get_config()
    config.data.name = "chest_xray"
    config.train.schedule = "cosine"  # the paper's rate is constant
    config.train.num_steps = 3  # 5 take a quarter longer
    return config
