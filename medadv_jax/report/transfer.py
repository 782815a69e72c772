"""The output of `scripts/evaluate_runs.py`: transfer of attacks between networks, and ensembles."""

import copy
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from medadv_jax.errors import UserError
from medadv_jax.files import read_json, read_record
from medadv_jax.report.page import Section
from medadv_jax.report.read_runs import load_records
from medadv_jax.report.records import RunRecords
from medadv_jax.report.run_tables import headline_table
from medadv_jax.report.style import WIDTH, Graphic, Omitted, draw, heatmap
from medadv_jax.report.tables import Cell, Table

_NOTE = (
    "A row: the classifier on which the adversarial examples are made (clean: none). A column: the"
    " classifier that they are tried on. Accuracy, for each image under the worst attack of its"
    " row; on the diagonal a classifier meets its own examples."
)


@dataclasses.dataclass(frozen=True)
class TransferRecords:
    """Several runs, each attacked with the adversarial examples of the others.

    Attributes:
      name: of the folder.
      members: names of the runs.
      header: of transfer.csv: "made on", then the classifiers that are attacked.
      lines: of transfer.csv: the classifier that the examples are made on, then accuracies.
      ensemble: the ensemble as a run with the defences "<defence>/<vote>"; None without one.
    """

    name: str
    members: tuple[str, ...]
    header: list[str]
    lines: list[list[str]]
    ensemble: RunRecords | None


def is_transfer(path: Path) -> bool:
    """Returns whether a folder was written by evaluate_runs.py, and is no run."""
    return (path / "runs.json").is_file() and not (path / "config.json").exists()


def load_transfer(path: Path, runs: Sequence[RunRecords]) -> TransferRecords:
    """Reads a folder written by evaluate_runs.py.

    Args:
      path: the folder.
      runs: the runs of the report; ε and data set are those of the first that is a member.

    Raises:
      UserError: no run is a member, or a file is missing.
    """
    members = read_json(path / "runs.json", read=_members)
    member = next((run for run in runs if run.name in members), None)
    if member is None:
        raise UserError(f"{path}: none of its runs is given; add {members[0]} to the command")
    if not (path / "transfer.csv").is_file():
        raise UserError(f"{path}: it has no transfer.csv; let evaluate_runs.py come to its end")
    header, *lines = csv.reader(read_record(path / "transfer.csv").decode().splitlines())
    ensemble = None
    if (path / "predictions.parquet").is_file():
        config = copy.deepcopy(member.config)
        config["model"]["name"] = f"ensemble of {len(members)}"
        ensemble = load_records(path, {"config": config})
        ensemble.splits = {"classes": member.class_names}
    return TransferRecords(path.resolve().name, members, header, lines, ensemble)


def _members(content: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(Path(run).name for run in content["runs"])


def transfer_section(records: TransferRecords) -> Section:
    """Returns the transfer matrix, and the accuracy of the ensemble."""
    parts = [f"Runs: {', '.join(records.members)}.", transfer_heatmap(records)]
    if records.ensemble is None:
        parts.append(Omitted("Ensemble", "there is one run, or no defence that all runs have"))
    else:
        parts.append(_ensemble_table(records, records.ensemble))
    return Section(f"Transfer and ensemble: {records.name}", parts)


def _ensemble_table(records: TransferRecords, ensemble: RunRecords) -> Table:
    table = headline_table(ensemble)
    note = (
        "mean: the mean probability decides; majority: most votes, the mean between equal ones."
        " adaptive: through the gradients of all members at once."
    )
    title = f"The ensemble: {len(records.members)} networks vote"
    name = f"ensemble_{records.name}"
    return dataclasses.replace(table, name=name, title=title, notes=(*table.notes, note))


def transfer_table(records: TransferRecords) -> Table:
    """Returns the transfer matrix as a table for the files; it is too wide for the page."""
    rows: list[tuple[Cell, ...]] = [(line[0], *map(float, line[1:])) for line in records.lines]
    title = "Transfer: accuracy on each other's examples"
    return Table(f"transfer_{records.name}", title, tuple(records.header), rows, (_NOTE,))


def transfer_heatmap(records: TransferRecords) -> Graphic:
    """Returns the transfer matrix as a figure."""
    values = np.array([[float(cell) for cell in line[1:]] for line in records.lines])
    if not values.size:
        return Omitted("Transfer matrix", "transfer.csv is empty")

    def paint(figure: Figure) -> None:
        axes = heatmap(figure, values, digits=3, size=9)
        axes.set_xticks(range(values.shape[1]), records.header[1:], rotation=45, ha="right")
        axes.set_yticks(range(values.shape[0]), [line[0] for line in records.lines])
        axes.set(xlabel="tried on", ylabel="made on")

    name, caption = f"transfer_{records.name}", f"Transfer matrix. {_NOTE}"
    return draw(name, caption, (WIDTH, 2.2 + 0.3 * len(values)), paint)
