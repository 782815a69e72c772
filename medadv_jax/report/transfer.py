"""What `scripts/evaluate_runs.py` leaves: who fools whom, and how well networks vote."""

import copy
import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from medadv_jax.errors import UserError
from medadv_jax.report.page import Section
from medadv_jax.report.records import RunRecords, load_records
from medadv_jax.report.run_tables import headline_table
from medadv_jax.report.style import WIDTH, Drawn, LeftOut, draw
from medadv_jax.report.tables import Cell, Table, number_text


@dataclasses.dataclass(frozen=True)
class Together:
    """Runs tried on each other.

    Attributes:
      name: of the folder.
      members: names of the runs.
      matrix: lines of transfer.csv: made on, then the accuracy of each target.
      votes: the committee as a run whose defences are "<defence>/<vote>"; None without one.
    """

    name: str
    members: tuple[str, ...]
    matrix: list[list[str]]
    votes: RunRecords | None


def is_together(path: Path) -> bool:
    """Returns whether a folder holds runs that were tried on each other, and no run."""
    return (path / "runs.json").is_file() and not (path / "config.json").exists()


def load_together(path: Path, runs: Sequence[RunRecords]) -> Together:
    """Reads such a folder.

    Args:
      path: the folder.
      runs: the runs of the report, among them one of the folder's: it knows ε and the data set.

    Raises:
      UserError: none of the folder's runs is there, or a file is missing.
    """
    members = tuple(Path(run).name for run in _read(path / "runs.json")["runs"])
    like = next((run for run in runs if run.name in members), None)
    if like is None:
        raise UserError(f"{path}: none of its runs is given; add {members[0]} to the command")
    if not (path / "transfer.csv").is_file():
        raise UserError(f"{path}: it has no transfer.csv; let evaluate_runs.py come to its end")
    with (path / "transfer.csv").open(encoding="utf-8", newline="") as file:
        matrix = list(csv.reader(file))
    votes = None
    if (path / "predictions.parquet").is_file():
        config = copy.deepcopy(like.config)
        config["model"]["name"] = f"committee of {len(members)}"
        votes = load_records(path, {"config": config})
    return Together(path.resolve().name, members, matrix, votes)


def _suffix(together: Together) -> str:
    return "".join(c if c.isalnum() else "_" for c in together.name)


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def together_section(together: Together) -> Section:
    """Returns the matrix, and the votes beside it."""
    suffix = _suffix(together)
    parts: list[Table | Drawn | str | None] = [
        f"Runs: {', '.join(together.members)}.",
        transfer_heatmap(together, f"transfer_{suffix}"),
    ]
    if together.votes is None:
        parts.append(LeftOut("Ensemble", "there is one run, or no defence that all runs have"))
    else:
        table = headline_table(together.votes)
        note = (
            "mean: the mean probability decides; majority: most votes, the mean between equal ones."
            " adaptive: through the gradients of all members at once."
        )
        title = f"The committee: {len(together.members)} networks vote"
        parts.append(
            dataclasses.replace(
                table, name=f"committee_{suffix}", title=title, notes=(*table.notes, note)
            )
        )
    return Section(f"Transfer and committee: {together.name}", parts)


_NOTE = (
    "A row: the classifier on which the adversarial examples are made (clean: none). A column: the"
    " classifier that they are tried on. Accuracy, for each image under the worst attack of its"
    " row; on the diagonal a classifier meets its own examples."
)


def transfer_table(together: Together) -> Table:
    """Returns the matrix as a table, for the files: it is too wide for a page."""
    header, *lines = together.matrix
    rows: list[tuple[Cell, ...]] = [(line[0], *map(float, line[1:])) for line in lines]
    name = f"transfer_{_suffix(together)}"
    return Table(name, "Transfer: accuracy on each other's examples", tuple(header), rows, (_NOTE,))


def transfer_heatmap(together: Together, name: str) -> Drawn:
    """Draws the matrix."""
    header, *lines = together.matrix
    values = np.array([[float(cell) for cell in line[1:]] for line in lines])
    if not values.size:
        return LeftOut("Transfer matrix", "transfer.csv is empty")

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for i, j in np.ndindex(*values.shape):
            color = "black" if values[i, j] > 0.55 else "white"
            text = number_text(float(values[i, j]))
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(values.shape[1]), header[1:], rotation=45, ha="right")
        axes.set_yticks(range(values.shape[0]), [line[0] for line in lines])
        axes.set(xlabel="tried on", ylabel="made on")
        axes.grid(False)

    return draw(name, f"Transfer matrix. {_NOTE}", (WIDTH, 2.2 + 0.3 * len(lines)), paint)
