"""Runs a grid of cells, each an ordinary run of main.py, and draws one report of them.

    python scripts/sweep.py --grid=smoke
    python scripts/sweep.py --configs=configs/demo.py --seeds=0,1,2 \
        --sweep.attack.epsilon=0.01,0.03 --config.train.epochs=4

A named grid is a file in configs/grids/. --sweep.FIELD=a,b adds an axis (values that have commas
themselves are separated by semicolons), --config.FIELD=a sets a field of every cell. The same
command goes on where a sweep stopped: finished cells are not repeated, failed ones are tried
again. Exit code: 0 all are done, 1 some failed, 2 a mistake in the command, 130 interrupted.
"""

import sys
from pathlib import Path

import jax
from absl import flags

from medadv_jax import cli
from medadv_jax.config import expand_path
from medadv_jax.experiment.sweep import run_sweep
from medadv_jax.experiment.sweep.display import print_plan
from medadv_jax.experiment.sweep.grids import make_cells
from medadv_jax.experiment.sweep.scheduler import initial_statuses
from medadv_jax.progress import default_console

_GRID = flags.DEFINE_string("grid", "", "A name in configs/grids/, or the path of a file.")
_CONFIGS = flags.DEFINE_list("configs", [], "Config files, instead of those of the grid.")
_SEEDS = flags.DEFINE_list("seeds", [], "The same as --sweep.seed=…")
_FOLDS = flags.DEFINE_integer(
    "folds", 0, "K-fold by patient: --config.data.num_folds=K, --sweep.data.fold=0,…,K-1."
)
_WORKDIR = flags.DEFINE_string("workdir", "", 'Folder of the cells; "": runs/<name of the grid>.')
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the cells; run nothing.")
_LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "Where cells run.")
_PARALLEL = flags.DEFINE_integer(
    "parallel", 1, "Cells at a time, each on one device; 0: one for each device.", lower_bound=0
)
_SLURM = flags.DEFINE_list(
    "slurm", [], "Parameters of submitit: timeout_min=240,gpus_per_node=1,slurm_partition=gpu."
)


def main() -> None:
    """Runs the sweep of the flags."""
    jax.config.update("jax_platforms", "cpu")  # this process computes nothing: devices are cells'
    default = f"runs/{Path(_GRID.value or 'sweep').stem}"
    folder = expand_path(_WORKDIR.value or default, "--workdir")
    grid = run_sweep.make_grid(_GRID.value, _CONFIGS.value, _SEEDS.value, _FOLDS.value, _fields)
    cells, console = make_cells(grid, folder), default_console()
    if _DRY_RUN.value:
        return print_plan(console, initial_statuses(cells))
    where = _PARALLEL.value, _LAUNCHER.value, _SLURM.value
    sys.exit(0 if run_sweep.run_sweep(console, cells, folder, *where) else 1)


if __name__ == "__main__":
    sys.argv, _fields = run_sweep.take_fields(sys.argv)
    cli.run(main)
