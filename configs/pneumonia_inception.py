"""Chest X-rays (normal or pneumonia), InceptionV3; all else as in pneumonia_resnet.py.

    python main.py --config=configs/pneumonia_inception.py --workdir=runs/x --config.data.dir=FOLDER

As it stands it has not been trained to its end yet.
"""

from configs import pneumonia_resnet
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = pneumonia_resnet.get_config()
    config.model.name = "inception_v3"
    config.model.weights = "torchvision/inception_v3"
    config.data.image_size = 299  # the paper's; the network takes 75 and more
    return config
