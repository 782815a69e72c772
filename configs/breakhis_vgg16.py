"""BreakHis histopathology (benign or malignant), VGG16; all else as in breakhis_resnet.py.

    python main.py --config=configs/breakhis_vgg16.py --workdir=runs/x --config.data.dir=FOLDER

As it stands it has not been trained to its end yet.
"""

from configs import breakhis_resnet
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = breakhis_resnet.get_config()
    config.model.name = "vgg16"
    config.model.weights = "torchvision/vgg16"
    return config
