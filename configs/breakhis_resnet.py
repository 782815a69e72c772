"""BreakHis histopathology (benign or malignant), ResNet50 from ImageNet weights.

    python main.py --config=configs/breakhis_resnet.py --workdir=runs/x --config.data.dir=FOLDER

Meant for a GPU, and for all 7,909 images; neither has been tried yet. On 138 of them and two CPU
cores, with --config.data.image_size=64 --config.model.width=0.5 --config.model.weights=none, it
runs to its end and says that its numbers mean nothing.
"""

from configs import default
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = default.get_config()
    config.data.name = "breakhis"
    config.model.weights = "torchvision/resnet50"  # none: a fresh start
    config.train.schedule = "cosine"  # the paper's rate is constant
    config.data.augment.flip = True  # tissue knows no left, right, up or down
    default.set_guided_purifier(config)
    return config
