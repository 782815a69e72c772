"""The same classifiers, measured so that the numbers can be trusted: five folds by patient.

    python scripts/sweep.py --grid=honest --config.data.dir=FOLDER

All images, unbalanced as they come, each tested once by a network that never saw its patient; every
attack is adaptive, too. Cells of one fold share nothing with those of another. All networks start
from torchvision's ImageNet weights. Meant for a GPU; it has not been run to its end yet.
"""

from medadv_jax.experiment.sweep.grids import CONFIGS, Grid


def get_grid() -> Grid:
    """Returns the grid: 40 cells."""
    return Grid(
        configs=CONFIGS,
        fields={
            "data.split": "patient",
            "data.num_folds": 5,
            "data.per_class": 0,
            "eval.restarts": 5,
        },
        axes={"data.fold": range(5)},
    )
