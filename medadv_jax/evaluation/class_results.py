"""Numbers of each class: `per_class.csv`, and `confusion.json` of more than two classes.

Both are derived from `predictions.parquet`, with a part for each row of `results.csv`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from medadv_jax.evaluation.metrics import balanced_accuracy, confusion_counts, one_against_rest
from medadv_jax.evaluation.predictions import (
    KEYS,
    group_rows,
    read_scores,
    to_columns,
    write_csv,
)
from medadv_jax.files import write_json

METRICS = ("n", "precision", "recall", "specificity", "f1", "auc", "tn", "fp", "fn", "tp")
COLUMNS = (*KEYS, "class", "name", *METRICS, "balanced_accuracy")


def write_class_results(folder: Path, class_names: Sequence[str], table: pa.Table) -> None:
    """Writes `per_class.csv`; for more than two classes `confusion.json` as well.

    Args:
      folder: where to write.
      class_names: of label 0, 1, …
      table: rows of `predictions.parquet`.
    """
    write_csv(folder / "per_class.csv", [COLUMNS, *class_rows(class_names, table)])
    if len(class_names) > 2:
        write_json(folder / "confusion.json", confusion_matrices(class_names, table))


def class_rows(class_names: Sequence[str], table: pa.Table) -> list[tuple[Any, ...]]:
    """Returns a line of `COLUMNS` for each row of `results.csv` and class, against the rest.

    The balanced accuracy is that of the row: the same for all of its classes.
    """
    columns, lines = to_columns(table), []
    scores = read_scores(columns)
    for key, at in group_rows(columns, KEYS).items():
        classes = one_against_rest(columns["label"][at], scores[at], columns["predicted"][at])
        balanced = balanced_accuracy(classes)
        for number, (name, each) in enumerate(zip(class_names, classes, strict=True)):
            values = (getattr(each, metric) for metric in METRICS)
            lines.append((*key, number, name, *values, balanced))
    return lines


def confusion_matrices(class_names: Sequence[str], table: pa.Table) -> dict[str, Any]:
    """Returns the content of `confusion.json`.

    "classes": the names in order. "rows": for each row of `results.csv` its key and "matrix":
    K rows, the truth, of K counts, the predictions.
    """
    columns, rows = to_columns(table), []
    for key, at in group_rows(columns, KEYS).items():
        label, predicted = columns["label"][at], columns["predicted"][at]
        counts = confusion_counts(label, predicted, len(class_names))
        rows.append({**dict(zip(KEYS, key, strict=True)), "matrix": counts.tolist()})
    return {"classes": [*class_names], "rows": rows}
