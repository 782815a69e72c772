"""Runs a grid of cells, each an ordinary run of main.py, and draws one report of them.

    python scripts/sweep.py --grid=smoke
    python scripts/sweep.py --configs=configs/demo.py --seeds=0,1,2 \
        --sweep.attack.epsilon=0.01,0.03 --config.train.epochs=4

A named grid is a file in configs/grids/. --sweep.FIELD=a,b adds an axis (values that have commas
themselves are separated by semicolons), --config.FIELD=a sets a field of every cell. The same
command goes on where a sweep stopped: finished cells are not repeated, failed ones are tried
again. Exit code: 0 all cells are done, 1 some failed, 2 a mistake in the command, 130 interrupted.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console

from medadv_jax import cli, interrupts
from medadv_jax.errors import UserError
from medadv_jax.experiment.sweep import lock
from medadv_jax.experiment.sweep.cells import is_finished
from medadv_jax.experiment.sweep.display import Display, duration, plan_sentence, plan_table
from medadv_jax.experiment.sweep.grids import Cell, Grid, load_grid, make_cells
from medadv_jax.experiment.sweep.journal import Journal
from medadv_jax.experiment.sweep.launchers import ClusterLauncher, Launcher, LocalLauncher
from medadv_jax.experiment.sweep.scheduler import BEFORE, FAILED, Scheduler, Status
from medadv_jax.progress import default_console
from medadv_jax.report import write_report

MAIN = Path(__file__).parents[1] / "main.py"

_GRID = flags.DEFINE_string("grid", "", "A name in configs/grids/, or the path of a file.")
_CONFIGS = flags.DEFINE_list("configs", [], "Config files, instead of those of the grid.")
_SEEDS = flags.DEFINE_list("seeds", [], "The same as --sweep.seed=…")
_FOLDS = flags.DEFINE_integer(
    "folds", 0, "K-fold by patient: --config.data.num_folds=K, --sweep.data.fold=0,…,K-1."
)
_WORKDIR = flags.DEFINE_string("workdir", "", 'Folder of the cells; "": runs/<name of the grid>.')
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the cells and what they cost; run nothing.")
_LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "Where cells run.")
_PARALLEL = flags.DEFINE_integer(
    "parallel", 1, "Cells at a time, each on one device; 0: one for each device.", lower_bound=0
)
_SLURM = flags.DEFINE_list(
    "slurm", [], "Parameters of submitit: timeout_min=240,gpus_per_node=1,slurm_partition=gpu."
)


def main(fields: Mapping[str, str], axes: Mapping[str, Sequence[str]]) -> None:
    """Runs the sweep of the flags; `fields` and `axes` are those of --config and --sweep."""
    jax.config.update("jax_platforms", "cpu")  # this process computes nothing: devices are cells'
    console = default_console()
    folder = Path(_WORKDIR.value or f"runs/{Path(_GRID.value or 'sweep').stem}")
    cells = make_cells(_grid(fields, axes), folder)
    if _DRY_RUN.value:
        print_plan(console, cells, Journal(folder, cells), _PARALLEL.value or 1)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with lock.held(folder, console.print) as descriptor:
        statuses = _run(console, cells, folder, _launcher(folder, descriptor))
    failed = _conclude(console, statuses, folder)
    sys.exit(1 if failed else 0)


def _grid(fields: Mapping[str, str], axes: Mapping[str, Sequence[str]]) -> Grid:
    grid = load_grid(_GRID.value) if _GRID.value else Grid(())
    fields, axes = dict(fields), dict(axes)
    if _SEEDS.value:
        axes["seed"] = _SEEDS.value
    if _FOLDS.value:
        fields["data.num_folds"] = str(_FOLDS.value)
        axes["data.fold"] = [str(fold) for fold in range(_FOLDS.value)]
    return grid.override(_CONFIGS.value, fields, axes)


def _launcher(folder: Path, descriptor: int) -> Launcher:
    extra = {"PYTHONUNBUFFERED": "1"}  # the display reads the logs
    if _LAUNCHER.value == "local":
        return LocalLauncher(_PARALLEL.value, extra, os.environ, descriptor)
    options: dict[str, Any] = {}
    for item in _SLURM.value:
        name, _, value = item.partition("=")
        options[name] = int(value) if value.isdigit() else value
    return ClusterLauncher(_PARALLEL.value or 1, extra, folder / "jobs", options)


def _run(console: Console, cells: list[Cell], folder: Path, launcher: Launcher) -> list[Status]:
    journal = Journal(folder, cells)
    journal.write()
    interrupts.defer()  # for as long as the cells take to save their state
    with Display(console, journal, launcher.slots) as display:
        scheduler = Scheduler(
            cells, launcher, journal, folder / "logs", MAIN, display.changed, interrupts.check
        )
        display.statuses = scheduler.statuses
        statuses = scheduler.run()
    interrupts.heed()
    return statuses


def print_plan(console: Console, cells: list[Cell], journal: Journal, slots: int) -> None:
    """Prints the cells, what is done of them, and what the rest would cost."""
    statuses = [Status(c, BEFORE) if is_finished(c) else Status(c) for c in cells]
    console.print(plan_table(statuses, journal))
    console.print(plan_sentence(statuses, journal, slots), highlight=False, soft_wrap=True)


def _conclude(console: Console, statuses: Sequence[Status], folder: Path) -> int:
    """Says how it went and draws the report of what there is; returns the number of failures."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    failed = [status for status in statuses if status.state == FAILED]
    before = sum(status.state == BEFORE for status in statuses)
    time = duration(sum(status.seconds for status in statuses))
    say(
        f"{len(statuses) - len(failed)} of {len(statuses)} cells are done ({before} were before);"
        f" this start: {time} over all cells"
    )
    for status in failed:
        say(f"failed: {status.cell.name}: {status.reason} (log: logs/{status.cell.name}.log)")
    finished = [status.cell.folder for status in statuses if status.state != FAILED]
    if finished:
        say(f"{write_report([folder], folder / 'report')}: the report")
    if failed:
        say("the same command tries them again")
    return len(failed)


def take_fields(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments that flags know, and those that set fields."""
    fields = [arg for arg in argv if re.match(r"--?(config|sweep)\.", arg)]
    return [arg for arg in argv if arg not in fields], fields


def parse_fields(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Returns the fields of --config.FIELD=value, and the axes of --sweep.FIELD=value,value.

    Raises:
      UserError: an argument without a value.
    """
    fields: dict[str, str] = {}
    axes: dict[str, list[str]] = {}
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        kind, _, field = name.partition(".")
        if not equals:
            raise UserError(f"{argument}: needs a value, as in --{kind}.train.epochs=5")
        if kind == "config":
            fields[field] = value
        else:
            axes[field] = value.split(";" if ";" in value else ",")
    return fields, axes


if __name__ == "__main__":
    sys.argv, _given = take_fields(sys.argv)
    cli.run(lambda: main(*parse_fields(_given)))
