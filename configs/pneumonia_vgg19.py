"""Chest X-rays (normal or pneumonia), VGG19; all else as in pneumonia_resnet.py.

    python main.py --config=configs/pneumonia_vgg19.py --workdir=runs/x --config.data.dir=FOLDER

As it stands it has not been trained to its end yet.
"""

from configs import pneumonia_resnet
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = pneumonia_resnet.get_config()
    config.model.name = "vgg19"
    config.model.weights = "torchvision/vgg19"
    return config
