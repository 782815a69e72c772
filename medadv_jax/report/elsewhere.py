"""What `scripts/evaluate.py --model --data` measured of a run on other images: `elsewhere.json`."""

from pathlib import Path
from typing import Any

from medadv_jax.evaluation.record_names import ELSEWHERE
from medadv_jax.files import read_json
from medadv_jax.report.tables import Cell, Estimate, Table

_NOTES = (
    "Images that are not the run's own test images: a folder's test split, else all of it."
    " Under attack: correct when clean and under every attack listed, adaptive (white-box).",
    "Of no training patient: without the images that share a name, or as far as names tell a"
    " patient, with the run's training and validation images. 95 % intervals: Wilson's, or a"
    " bootstrap of patients where one has several images.",
)


def elsewhere_table(run: Path) -> Table | None:
    """Returns the accuracies of a run's classifiers on other images; None: none were measured.

    Raises:
      UserError: the record is damaged.
    """
    path = run / ELSEWHERE
    if not path.is_file():
        return None
    columns = (
        "images", "classifier", "which", "n", "patients", "clean", "under attack", "attacks",
        "checks",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = read_json(path, read=_rows)
    return Table("elsewhere", "Accuracy on images of other data sets", columns, rows, _NOTES)


def _rows(found: list[dict[str, Any]]) -> list[tuple[Cell, ...]]:
    return [
        (
            f"{each['data']} ({each['part']})", each["defense"], row["images"], int(row["n"]),
            "unknown" if row["patients"] is None else int(row["patients"]),
            Estimate(row["accuracy"], (row["low"], row["high"])),
            Estimate(row["attacked_accuracy"], (row["attacked_low"], row["attacked_high"])),
            f"{each['attacks']}, ε = {each['epsilon']:g} ({each['norm']})", each["checks"],
        )
        for each in found
        for row in each["rows"]
    ]  # fmt: skip
