"""BreakHis histopathology, ResNet50."""

from configs import default
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = default.get_config()
    config.data.name = "breakhis"
    config.train.schedule = "cosine"  # the paper's rate is constant
    config.data.augment.flip = True  # tissue knows no left, right, up or down
    return config
