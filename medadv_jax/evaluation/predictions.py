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

from medadv_jax.data.splits import Example
from medadv_jax.errors import UserError
from medadv_jax.evaluation.metrics import Metrics, right_throughout, summarize
from medadv_jax.evaluation.statistics import wilson_interval
from medadv_jax.files import atomic_write, write_text

KEYS = ("defense", "threat_model", "evaluation", "epsilon")  # what a row of results.csv is about
METRICS = (
    "n", "accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "specificity", "f1",
    "auc", "attack_success_rate", "tn", "fp", "fn", "tp",
)  # fmt: skip
COLUMNS = ("dataset", "model", *KEYS, *METRICS)

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


def write_table(path: Path, table: pa.Table) -> None:
    """Writes records beside and renames."""
    with atomic_write(path) as beside:
        pq.write_table(table, beside)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Returns the records of a file, none if it is missing.

    Raises:
      UserError: the file is damaged, or holds something else.
    """
    if not path.exists():
        return schema.empty_table()
    try:
        return pq.read_table(path, schema=schema)
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: damaged ({reason}); delete it, and the same command makes it anew"
        ) from error


def read_predictions(path: Path) -> pa.Table:
    """Returns the predictions of a run so far; see `read_table`."""
    return read_table(path, SCHEMA)


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


def worst_case(table: pa.Table) -> dict[tuple[str, str], tuple[int, int]]:
    """Returns (defense, threat model) -> (examples right when clean and under every attack,
    examples): an attacker may leave an image alone."""
    keys = (table[name].to_pylist() for name in ("defense", "threat_model", "example"))
    right = right_throughout(zip(*keys, strict=True), rights(table))
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for (defense, threat, example), good in right.items():
        if threat != "none":
            so_far, n = counts.get((defense, threat), (0, 0))
            good = good and right[defense, "none", example]
            counts[defense, threat] = so_far + good, n + 1
    return counts


def rights(table: pa.Table) -> np.ndarray:
    """Returns which rows are right, (rows,) bool."""
    return table["predicted"].to_numpy() == table["label"].to_numpy()


def print_results(
    console: Console, table: pa.Table, results: Sequence[tuple[tuple, Metrics]]
) -> None:
    """Prints accuracies, a line for each classifier and threat model: whatever was attacked
    stands beside what an attacker who knows all of it achieves."""
    metrics = {(key[0], key[1], key[2]): m for key, m in results}
    attacks = list(dict.fromkeys(key[2] for key, _ in results if key[2] != "clean"))
    title = "Accuracy (Wilson's 95 % interval); worst: right clean and under every attack"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("defense", "threat", "clean", *attacks, "worst"):
        left = header in ("defense", "threat")
        shown.add_column(header, justify="left" if left else "right", no_wrap=True)
    # A narrow terminal gets the numbers, the intervals stand in results.csv.
    interval = _interval if console.width >= 75 + 8 * len(attacks) else _number
    notes = []
    for (defense, threat), (right, n) in worst_case(table).items():
        clean = metrics[defense, "none", "clean"]
        cells = [metrics[defense, threat, attack] for attack in attacks]
        shown.add_row(
            defense, threat, interval(clean.accuracy, clean.accuracy_low, clean.accuracy_high),
            *(f"{cell.accuracy:.3f}" for cell in cells),
            interval(right / n, *wilson_interval(right, n)),
        )  # fmt: skip
    for (defense, _, evaluation, _), m in results:
        notes += [f"{defense} {evaluation}: no {c}: {why}" for c, why in m.reasons.items()]
    console.print(shown)
    for note in dict.fromkeys(notes):
        console.print(note, highlight=False, markup=False)


def _number(value: float | None, low: float | None, high: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return "–" if value is None else f"{value:.3f} ({low:.3f}–{high:.3f})"
