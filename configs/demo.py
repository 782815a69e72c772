"""A first look: generated chest X-rays, a narrow ResNet50, everything in minutes on two cores.

make demo
"""

from configs import default
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config of the demo."""
    config = default.get_config()
    config.data.name = "phantoms"
    config.data.image_size = 48
    config.data.per_class = 600
    config.model.width = 0.25
    config.train.epochs = 6
    config.train.schedule = "cosine"
    config.train.num_steps = 5
    return config
