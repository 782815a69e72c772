"""Chest X-rays (normal or pneumonia), ResNet50 from ImageNet weights.

    python main.py --config=configs/pneumonia_resnet.py --workdir=runs/x --config.data.dir=FOLDER

As it stands (224 px, full width) it is meant for a GPU and has not been run there yet. On two CPU
cores add --config.data.image_size=64 --config.model.width=0.5 --config.model.weights=none
--config.train.epochs=12. Seen so, 2026-11-28, 300 test images split by patient, clean / worst
adaptive attack at ε = 0.03, APGD among them: base 0.977 / 0.000; adversarial 0.947 / 0.760;
autoencoder 0.973 / 0.000 (oblivious 0.743); hybrid 0.947 / 0.730. More in docs/results.md.
"""

from configs import default
from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = default.get_config()
    config.data.name = "chest_xray"
    config.model.weights = "torchvision/resnet50"  # none: a fresh start
    config.train.schedule = "cosine"  # the paper's rate is constant
    config.train.num_steps = 3  # fewer than the default, to save time
    default.set_guided_purifier(config)
    return config
