"""What the run directory of a cell holds, and the stages it can reuse from another cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medadv_jax.config import FIELDS_WITHOUT_RESULT, flatten, read_saved_config
from medadv_jax.defenses import get_defense
from medadv_jax.errors import UserError
from medadv_jax.experiment.run_dir import IRRELEVANT_FIELDS, LOCK, relevant_differences
from medadv_jax.experiment.sweep.grids import Cell
from medadv_jax.files import file_lock


def is_finished(cell: Cell) -> bool:
    """Returns whether the folder holds a whole run of this config; its report is written last."""
    if not all((cell.folder / name).is_file() for name in ("results.csv", "report/index.html")):
        return False
    saved = saved_config(cell.folder)
    allowed = {*FIELDS_WITHOUT_RESULT, "reuse"}
    return saved is not None and _differing(saved, flatten(cell.config)) <= allowed


def saved_config(folder: Path) -> dict[str, Any] | None:
    """Returns the config of a run, "section.field" -> value; None: no run has begun there."""
    try:
        return flatten(read_saved_config(folder / "config.json")["config"])
    except UserError:
        return None


def _differing(there: dict[str, Any], here: dict[str, Any]) -> set[str]:
    return {name for name in {**there, **here} if there.get(name) != here.get(name)}


def is_at_work(cell: Cell) -> bool:
    """Returns whether a process holds the lock of the run directory."""
    if not (cell.folder / LOCK).exists():
        return False
    try:
        with file_lock(cell.folder / LOCK, cell.name, shared=True):
            return False
    except UserError:
        return True


def donors(cell: Cell, earlier: Sequence[Cell]) -> list[Cell]:
    """Returns which of the earlier cells share stages with this one, those with most first."""
    counted = [(len(shared_stages(cell, other)), other) for other in earlier]
    return [other for count, other in sorted(counted, key=lambda pair: -pair[0]) if count]


def shared_stages(cell: Cell, other: Cell) -> list[str]:
    """Returns the stages that `run_dir.reuse_stages` would copy from one cell to the other."""
    here, there = flatten(cell.config), flatten(other.config)
    wanted = [set(config["defenses"].split(",")) for config in (here, there)]
    return [
        stage
        for stage in IRRELEVANT_FIELDS
        if all(stage in names for names in wanted) and not relevant_differences(stage, there, here)
    ]


def reuse_of(cell: Cell, earlier: Sequence[Cell]) -> str:
    """Returns the value of `config.reuse` to start a cell with.

    A run that has begun keeps what its config says. Else the earlier cell that shares most stages,
    of those that have trained one of them to its end; "": none has.
    """
    saved = saved_config(cell.folder)
    if saved is not None:
        return str(saved.get("reuse", ""))
    for other in donors(cell, earlier):
        if any(_is_trained(other, stage) for stage in shared_stages(cell, other)):
            return str(other.folder.absolute())
    return ""


def _is_trained(cell: Cell, stage: str) -> bool:
    epochs = get_defense(stage).training(cell.config).epochs
    return (cell.folder / "checkpoints" / stage / str(epochs)).is_dir()


def command(cell: Cell, main: Path, earlier: Sequence[Cell]) -> list[str]:
    """Returns the arguments of the run, without the interpreter."""
    fields = [f"--config.{field}={text}" for field, text in cell.overrides.items()]
    reuse = reuse_of(cell, earlier)
    if reuse:
        fields.append(f"--config.reuse={reuse}")
    return [str(main), f"--config={cell.config_file}", f"--workdir={cell.folder}", *fields]


def progress(lines: Sequence[str]) -> str:
    """Returns the last line of a log that tells of a stage, such as "train base: epoch 2/6 …"."""
    stages = [line for line in lines if line.startswith(("train ", "evaluate ", "check "))]
    return stages[-1] if stages else ""


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
