"""Cells for the tests of sweeps."""

from medadv_jax.experiment.sweep.grids import Grid, make_cells

DEMO = "configs/demo.py"


def seeds(tmp_path, count, configs=(DEMO,)):
    """Cells that differ by seed: none can take anything from another."""
    return make_cells(Grid(configs, axes={"seed": range(count)}), tmp_path / "sweep")
