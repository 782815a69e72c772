"""BreakHis histopathology (benign or malignant), InceptionV3; all else as in breakhis_resnet.py.

    python main.py --config=configs/breakhis_inception.py --workdir=runs/x --config.data.dir=FOLDER

As it stands it has not been trained to its end yet.
"""

from configs import breakhis_resnet
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = breakhis_resnet.get_config()
    config.model.name = "inception_v3"
    config.model.weights = "torchvision/inception_v3"
    config.data.image_size = 299  # the paper's; the network takes 75 and more
    return config
