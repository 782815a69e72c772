"""What stands of a cell in its run directory, and what it can take from another cell."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medadv_jax.config import FIELDS_WITHOUT_RESULT, Config, flatten, read_saved_config
from medadv_jax.defenses import get_defense
from medadv_jax.errors import UserError
from medadv_jax.experiment.run_dir import IRRELEVANT_FIELDS, relevant_differences
from medadv_jax.experiment.sweep.grids import Cell


def is_finished(cell: Cell) -> bool:
    """Returns whether the run of just this config has come to its end: its report is written last.

    A folder that holds a run of another config is not finished: main.py refuses it, and says why.
    """
    if not all((cell.folder / name).is_file() for name in ("results.csv", "report/index.html")):
        return False
    saved = saved_config(cell.folder)
    return saved is not None and not _differences(saved, flatten(cell.config))


def saved_config(folder: Path) -> dict[str, Any] | None:
    """Returns the config of a run, "section.field" -> value; None: no run has begun there."""
    try:
        return flatten(read_saved_config(folder / "config.json")["config"])
    except UserError:
        return None


def _differences(there: dict[str, Any], here: dict[str, Any]) -> set[str]:
    names = {**there, **here}.keys() - {*FIELDS_WITHOUT_RESULT, "reuse"}
    return {name for name in names if there.get(name) != here.get(name)}


def donors(cell: Cell, earlier: Sequence[Cell]) -> list[Cell]:
    """Returns the cells that train stages just as this cell would, those with most stages first.

    Args:
      cell: of a sweep.
      earlier: the cells before it.
    """
    counted = [(len(shared_stages(cell, other)), other) for other in earlier]
    ranked = sorted(counted, key=lambda pair: -pair[0])
    return [other for count, other in ranked if count]


def shared_stages(cell: Cell, other: Cell) -> list[str]:
    """Returns the stages that come out the same in both, as `workdir.reuse_stages` sees it."""
    here, there = flatten(cell.config), flatten(other.config)
    wanted = [set(config["defenses"].split(",")) for config in (here, there)]
    return [
        stage
        for stage in IRRELEVANT_FIELDS
        if all(stage in names for names in wanted) and not relevant_differences(stage, there, here)
    ]


def reuse_of(cell: Cell, candidates: Sequence[Cell]) -> str:
    """Returns the value of `config.reuse` to start a cell with.

    A run that has begun keeps what its config says. Else the first of the candidates that has
    trained a shared stage to its end; "": none has.
    """
    saved = saved_config(cell.folder)
    if saved is not None:
        return str(saved.get("reuse", ""))
    for other in candidates:
        if any(_is_trained(other, stage) for stage in shared_stages(cell, other)):
            return str(other.folder.absolute())
    return ""


def _is_trained(cell: Cell, stage: str) -> bool:
    epochs = get_defense(stage).training(cell.config).epochs
    return (cell.folder / "checkpoints" / stage / str(epochs)).is_dir()


def command(cell: Cell, main: Path, reuse: str) -> list[str]:
    """Returns the arguments of the run, without the interpreter."""
    fields = [f"--config.{field}={text}" for field, text in cell.overrides.items()]
    if reuse:
        fields.append(f"--config.reuse={reuse}")
    return [str(main), f"--config={cell.config_file}", f"--workdir={cell.folder}", *fields]


def progress(cell: Cell, log: Path, offset: int) -> str:
    """Returns how far a run is, in words: epochs trained and the last stage it spoke of.

    Args:
      cell: the cell.
      log: of its run.
      offset: where the log of this start begins.
    """
    parts = []
    total = epochs_of(cell.config)
    if total:
        parts.append(f"{min(_epochs_done(cell.folder), total)}/{total} epochs")
    last = last_lines(log, offset)
    stages = [line for line in last if line.startswith(("train ", "evaluate ", "check "))]
    if stages:
        parts.append(stages[-1].partition(":")[0])
    return ", ".join(parts)


def epochs_of(config: Config) -> int:
    """Returns the epochs of all stages."""
    return sum(get_defense(n).training(config).epochs for n in config.defenses.split(","))


def _epochs_done(folder: Path) -> int:
    """Returns the epochs that `metrics.jsonl` tells of."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    ends = set()
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the line that is being written
            continue
        if "validation_loss" in row:
            ends.add((row["defense"], row["epoch"]))
    return len(ends)


def last_lines(log: Path, offset: int, most: int = 16384) -> list[str]:
    """Returns the last lines of a log after `offset` that are not empty."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(offset, size - most))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]
