"""How wide a bottleneck? The paper looked at 64, 128 and 256 units and took 128 (section III-C).

    python scripts/sweep.py --grid=bottleneck --config.data.dir=FOLDER

With the paper's purifier and objective. The networks of a data set are trained once and reused by
the other cells.
"""

from medadv_jax.experiment.sweep.grids import Grid


def get_grid() -> Grid:
    """Returns the grid: 6 cells."""
    return Grid(
        configs=("configs/pneumonia_resnet.py", "configs/breakhis_resnet.py"),
        fields={
            "purifier.name": "dense",
            "purifier.width": 1.0,
            "purifier.objective": "reconstruction",
            "purifier.epochs": 10,
            "purifier.joint_epochs": 0,
        },
        axes={"purifier.bottleneck": (64, 128, 256)},
    )
