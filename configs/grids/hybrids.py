"""Does a purifier help against an attacker who knows it? Five attempts on the chest X-rays.

    python scripts/sweep.py --grid=hybrids --config.data.dir=FOLDER

ResNet50 at width 0.5 from fresh weights, 64 pixels, split by patient, as in the grid `objectives`.
Each cell has the adversarially trained network without a purifier beside it. It has not been run to
its end yet.
"""

from configs.grids.objectives import XRAYS
from medadv_jax.experiment.sweep.grids import Grid

_TRADES = {"train.objective": "trades"}
_HYBRID = {"defenses": "base,adversarial,autoencoder,hybrid"}
_JOINT = {"defenses": "base,adversarial,joint"}


def get_grid() -> Grid:
    """Returns the grid: 6 cells."""
    return Grid(
        configs=("configs/pneumonia_resnet.py",),
        fields=XRAYS,
        rows={
            "today": _HYBRID,
            "long": _HYBRID | {"purifier.epochs": 12, "purifier.joint_epochs": 12},
            "trades": _HYBRID | _TRADES,
            "joint": _JOINT,
            "joint_trades": _JOINT | _TRADES,
            "adaptive_examples": {"defenses": "base,adversarial,purified", "purifier.epochs": 12},
        },
    )
