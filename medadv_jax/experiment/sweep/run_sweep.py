"""The command of a sweep: its grid from the flags, one start of its cells, and the report."""

import functools
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from medadv_jax import interrupts
from medadv_jax.errors import UserError
from medadv_jax.experiment.run import check_name
from medadv_jax.experiment.run_dir import LOCK
from medadv_jax.experiment.sweep.cells import is_at_work
from medadv_jax.experiment.sweep.display import live_table, print_change
from medadv_jax.experiment.sweep.grids import ROOT, Cell, Grid, load_grid
from medadv_jax.experiment.sweep.launchers import Launcher
from medadv_jax.experiment.sweep.scheduler import BEFORE, FAILED, Scheduler, Status
from medadv_jax.files import file_lock
from medadv_jax.progress import duration, say
from medadv_jax.report import write_report

_WAIT_SECONDS = 60.0  # for cells of an earlier start


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


def make_grid(
    name: str, configs: Sequence[str], seeds: Sequence[str], folds: int, arguments: Sequence[str]
) -> Grid:
    """Returns the grid of the flags; `arguments` are those that set fields."""
    grid = load_grid(name) if name else Grid(())
    fields, axes = parse_fields(arguments)
    if seeds:
        axes["seed"] = list(seeds)
    if folds:
        fields["data.num_folds"] = str(folds)
        axes["data.fold"] = [str(fold) for fold in range(folds)]
    return grid.override(configs, fields, axes)


def run_sweep(
    console: Console, cells: Sequence[Cell], folder: Path, parallel: int, cluster: str,
    slurm: Sequence[str],
) -> bool:  # fmt: skip
    """Runs the cells that are not done, and draws the report of those that are.

    Args:
      console: what it prints on.
      cells: all of the sweep.
      folder: of the sweep.
      parallel: cells at a time; 0: one for each device.
      cluster: "local" or "slurm".
      slurm: parameters of submitit, such as "timeout_min=240".

    Returns:
      Whether all cells are done.

    Raises:
      UserError: another start is at work, or submitit cannot be used so.
    """
    check_name(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remedy = "wait for it, or give another --workdir"
    with file_lock(folder / LOCK, f"another start of {folder}", remedy=remedy):
        pairs = [item.partition("=")[::2] for item in slurm if cluster == "slurm"]
        options: dict[str, Any] = {k: int(v) if v.isdigit() else v for k, v in pairs}
        launcher = Launcher(cluster, parallel, folder / "jobs", options, os.environ)
        wait_for_cells(console, cells)
        changed = functools.partial(print_change, console)
        main = ROOT / "main.py"
        scheduler = Scheduler(cells, launcher, folder, main, changed, interrupts.check)
        interrupts.defer()  # for as long as the cells take to save their state
        with live_table(console, scheduler.statuses):
            scheduler.run()
        interrupts.heed()
    return _conclude(console, scheduler.statuses, folder)


def wait_for_cells(console: Console, cells: Sequence[Cell]) -> None:
    """Waits until no process is at work in the folders of the cells, for a minute at the most."""
    end, told = time.monotonic() + _WAIT_SECONDS, False
    while any(is_at_work(cell) for cell in cells) and time.monotonic() < end:
        if not told:
            say(console, "waiting for cells of an earlier start, which save their state")
            told = True
        time.sleep(0.5)


def _conclude(console: Console, statuses: Sequence[Status], folder: Path) -> bool:
    """Prints how it went and draws the report of what there is; returns whether all are done."""
    failed, total = [s for s in statuses if s.state == FAILED], len(statuses)
    before = sum(status.state == BEFORE for status in statuses)
    done = f"{total - len(failed)} of {total} cells are done ({before} were before)"
    say(console, f"{done}; this start: {duration(sum(s.seconds for s in statuses))} over all cells")
    for status in failed:
        name = status.cell.name
        say(console, f"failed: {name}: {status.reason} (log: logs/{name}.log)")
    if len(failed) < total:
        say(console, f"{write_report([folder], folder / 'report')}: the report")
    if failed:
        say(console, "the same command tries them again")
    return not failed
