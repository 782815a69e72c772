"""Tables IV and V as the paper prints them: both data sets, four networks, 100 images attacked.

    python scripts/sweep.py --grid=paper --config.data.dir=FOLDER

Split by image, which leaks patients, as in the paper; a report says so. All networks start from
torchvision's ImageNet weights. Meant for a GPU; it has not been run to its end yet.
"""

from medadv_jax.experiment.sweep.grids import CONFIGS, Grid


def get_grid() -> Grid:
    """Returns the grid: 8 cells."""
    return Grid(
        configs=CONFIGS,
        fields={
            "data.split": "image",
            "eval.images": 100,
            # Where the configs are better than the paper, back to the paper.
            "train.schedule": "constant",
            "train.num_steps": 5,
            "purifier.name": "dense",
            "purifier.width": 1.0,
            "purifier.objective": "reconstruction",
            "purifier.epochs": 10,
            "purifier.joint_epochs": 0,
        },
    )
