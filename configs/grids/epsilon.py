"""Which radius to train against? The paper looked at 0.01 to 0.05 and took 0.03 (section III-C).

    python scripts/sweep.py --grid=epsilon --config.data.dir=FOLDER

Each cell trains and attacks at its own radius; the curves have all radii for each, on the images of
the self-checks, and the report compares the cells there at 0.03. The undefended network of a data
set is trained once and reused by the other cells.
"""

from medadv_jax.experiment.sweep.grids import Grid


def get_grid() -> Grid:
    """Returns the grid: 10 cells."""
    return Grid(
        configs=("configs/pneumonia_resnet.py", "configs/breakhis_resnet.py"),
        fields={"defenses": "base,adversarial", "eval.check_images": 256},
        axes={"attack.epsilon": (0.01, 0.02, 0.03, 0.04, 0.05)},
    )
