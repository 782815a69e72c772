"""Records of a run: `predictions.parquet`, and `results.csv` derived from it. Runs no model."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from medadv_jax.metrics import Metrics, summarize
from medadv_jax.splits import Example
from medadv_jax.writers import write_text

KEYS = ("defense", "threat_model", "evaluation", "epsilon")  # what a row of results.csv is about
METRICS = (
    "n", "accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "specificity", "f1",
    "auc", "attack_success_rate", "tn", "fp", "fn", "tp",
)  # fmt: skip
COLUMNS = ("dataset", "model", *KEYS, *METRICS)

_WIDE = 124  # characters that the whole table takes
_SHORT = {
    "precision": "prec.",
    "recall": "recall",
    "specificity": "spec.",
    "f1": "F1",
    "auc": "AUC",
    "attack_success_rate": "ASR",
}

SCHEMA = pa.schema(
    [
        ("defense", pa.string()),
        ("threat_model", pa.string()),  # none, oblivious, adaptive, transfer
        ("evaluation", pa.string()),  # clean, or the name of the attack
        ("epsilon", pa.float64()),  # pixels in [0, 1]; 0 for clean
        ("example", pa.string()),
        ("group", pa.string()),  # patient or case
        ("magnification", pa.int32()),  # 0: unknown
        ("subtype", pa.string()),  # of the tissue or the infection; "": unknown
        ("label", pa.int32()),
        ("score", pa.float32()),  # probability of class 1
        ("predicted", pa.int32()),
    ]
)


def prediction_rows(
    key: tuple[str, str, str, float],
    examples: Sequence[Example],
    score: np.ndarray,
    predicted: np.ndarray,
) -> pa.Table:
    """Returns the records of one classifier under one evaluation.

    Args:
      key: (defense, threat_model, evaluation, epsilon).
      examples: n examples.
      score: (n,) float32, probability of class 1.
      predicted: (n,) integer.
    """
    n = len(examples)
    columns: dict[str, Any] = {name: [value] * n for name, value in zip(KEYS, key, strict=True)}
    columns |= {
        "example": [e.id for e in examples],
        "group": [e.group for e in examples],
        "magnification": [e.magnification for e in examples],
        "subtype": [e.subtype for e in examples],
        "label": [e.label for e in examples],
        "score": score,
        "predicted": predicted,
    }
    return pa.table(columns, schema=SCHEMA)


def write_predictions(path: Path, table: pa.Table) -> None:
    """Writes records beside and renames."""
    beside = path.with_name(f".{path.name}")
    pq.write_table(table, beside)
    beside.replace(path)


def read_predictions(path: Path) -> pa.Table:
    """Returns the records of a run so far, none if the file is missing."""
    return pq.read_table(path, schema=SCHEMA) if path.exists() else SCHEMA.empty_table()


def derive_results(table: pa.Table) -> list[tuple[tuple[str, str, str, float], Metrics]]:
    """Returns (key, metrics) of every classifier and evaluation, in the order of the records."""
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    keys = list(zip(*(columns[name].tolist() for name in KEYS), strict=True))
    rows: dict[tuple[str, str, str, float], list[int]] = {}
    for i, key in enumerate(keys):
        rows.setdefault(key, []).append(i)
    clean = {
        (key[0], columns["example"][i]): columns["predicted"][i]
        for key, indices in rows.items()
        if key[2] == "clean"
        for i in indices
    }
    results = []
    for key, indices in rows.items():
        label, score, predicted = (columns[c][indices] for c in ("label", "score", "predicted"))
        before = None
        if key[2] != "clean":
            before = np.array([clean[key[0], columns["example"][i]] for i in indices])
        results.append((key, summarize(label, score, predicted, before)))
    return results


def write_results(
    path: Path, dataset: str, model: str, results: Sequence[tuple[tuple, Metrics]]
) -> None:
    """Writes `results.csv`; a number that has no meaning is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, metrics in results:
        values = (getattr(metrics, name) for name in METRICS)
        writer.writerow([dataset, model, *key, *("" if v is None else v for v in values)])
    write_text(path, text.getvalue())


def print_results(console: Console, results: Sequence[tuple[tuple, Metrics]]) -> None:
    """Prints what `results.csv` says as a table, and below it why cells are empty."""
    names = list(_SHORT)
    if console.width < _WIDE:  # a narrow terminal gets what matters most; the file has it all
        names = ["auc", "attack_success_rate"]
    title = "Results: accuracy with Wilson's 95 % interval; ASR: attack success rate"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("defense", "threat", "evaluation", "ε", "n", "accuracy"):
        left = header in ("defense", "threat", "evaluation")
        table.add_column(header, justify="left" if left else "right", no_wrap=True)
    for name in names:
        table.add_column(_SHORT[name], justify="right", no_wrap=True)
    notes = []
    for (defense, threat, evaluation, epsilon), m in results:
        accuracy = "–"
        if m.accuracy is not None:
            accuracy = f"{m.accuracy:.3f} ({m.accuracy_low:.3f}–{m.accuracy_high:.3f})"
        values = ((name, getattr(m, name)) for name in names)
        cells = [
            _cell(v, name == "attack_success_rate" and evaluation == "clean") for name, v in values
        ]
        table.add_row(defense, threat, evaluation, f"{epsilon:g}", str(m.n), accuracy, *cells)
        notes += [f"{defense} {evaluation}: no {c}: {why}" for c, why in m.reasons.items()]
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False)


def _cell(value: float | None, not_asked: bool) -> str:
    return ("" if not_asked else "–") if value is None else f"{value:.3f}"
