"""ChestX-ray14: 14 findings an image, ResNet50, the official split; the start of another run.

    python main.py --config=configs/chestxray14.py --workdir=runs/x14 --config.data.dir=FOLDER
    python main.py --config=configs/pneumonia_resnet.py --workdir=runs/x --config.model.weights=runs/x14

Clean images and the undefended network alone: an attack on several labels at once is not defined
here. Real images were not tried, for want of a copy; docs/data.md has what the generated stand-in
gave, and how to make it.
"""  # noqa: E501

from configs import default
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = default.get_config()
    config.data.name = "chest_xray14"
    config.data.split = "official"
    config.data.per_class = 0
    config.defenses = "base"
    config.model.weights = "torchvision/resnet50"  # none: a fresh start
    config.train.schedule = "cosine"
    config.eval.attacks = "none"
    config.eval.checks = config.detector.run = False
    return config
