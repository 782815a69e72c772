"""Records of a run: `predictions.parquet`, and `results.csv` derived from it. Runs no model.

Also reads and writes the other tables of a run directory.
"""

import csv
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
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
from medadv_jax.evaluation.metrics import Metrics, correct_in_all, summarize
from medadv_jax.evaluation.statistics import METHODS, proportion_interval, proportion_method
from medadv_jax.files import read_record, write_record

KEYS = ("defense", "threat_model", "evaluation", "epsilon")  # of a row of results.csv
METRICS = (
    "n", "accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "specificity", "f1",
    "auc", "attack_success_rate", "tn", "fp", "fn", "tp",
)  # fmt: skip
COLUMNS = ("dataset", "model", *KEYS, *METRICS)

Key = tuple[str, str, str, float]  # values of KEYS
Columns = Mapping[str, np.ndarray]  # name -> values (rows,)

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
        ("score", pa.float32()),  # probability of class 1; of K > 2 classes: score_0 … score_{K-1}
        ("predicted", pa.int32()),
    ]
)


def record_schema(num_classes: int, schema: pa.Schema = SCHEMA) -> pa.Schema:
    """Returns a schema of records of two classes with the score columns of K classes."""
    if num_classes == 2:
        return schema
    place, names = schema.get_field_index("score"), score_names(num_classes)
    fields = [pa.field(name, pa.float32()) for name in names]
    return pa.schema([*list(schema)[:place], *fields, *list(schema)[place + 1 :]])


def score_names(num_classes: int) -> list[str]:
    """Returns the columns that hold the scores."""
    return ["score"] if num_classes == 2 else [f"score_{k}" for k in range(num_classes)]


def read_scores(columns: Columns) -> np.ndarray:
    """Returns the scores of records: (rows,) of class 1 of two, else (rows, K)."""
    if "score_0" not in columns:
        return columns["score"]
    names = score_names(sum(name.startswith("score_") for name in columns))
    return np.stack([columns[name] for name in names], axis=1)


def prediction_rows(
    key: Key,
    examples: Sequence[Example],
    score: np.ndarray,
    predicted: np.ndarray,
) -> pa.Table:
    """Returns the records of one classifier under one evaluation.

    Args:
      key: (defense, threat_model, evaluation, epsilon).
      examples: n examples.
      score: (n,) float32, probability of class 1 of two; of K > 2 classes (n, K), of each.
      predicted: (n,) integer.
    """
    n, scores = len(examples), score[:, None] if score.ndim == 1 else score
    num_classes = max(2, scores.shape[1])
    columns: dict[str, Any] = {name: [value] * n for name, value in zip(KEYS, key, strict=True)}
    columns |= {
        "example": [e.id for e in examples],
        "group": [e.group for e in examples],
        "magnification": [e.magnification for e in examples],
        "subtype": [e.subtype for e in examples],
        "label": [e.label for e in examples],
        **dict(zip(score_names(num_classes), scores.T, strict=True)),
        "predicted": predicted,
    }
    return pa.table(columns, schema=record_schema(num_classes))


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a record as a parquet file with checksums of its pages."""
    with write_record(path) as beside:
        pq.write_table(table, beside, write_page_checksum=True)


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Returns the rows of a parquet file; none if it is missing, without a schema no columns.

    Raises:
      UserError: the file is damaged, or holds something else than `schema`.
    """
    if not path.exists():
        return (schema or pa.schema([])).empty_table()
    content = io.BytesIO(read_record(path))
    try:
        return pq.read_table(content, schema=schema, page_checksum_verification=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: damaged ({reason}); delete it, and the same command makes it anew"
        ) from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a record of arrays, an npz file."""
    with write_record(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz file, {} if it is missing; UserError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        with np.load(io.BytesIO(read_record(path)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged; delete it, and let the run write it again") from error


def to_columns(table: pa.Table) -> Columns:
    """Returns name -> values (rows,) of every column."""
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def group_rows(columns: Columns, names: Sequence[str]) -> dict[tuple, np.ndarray]:
    """Returns (values of `names`) -> positions of the rows that have them, first come first."""
    rows: dict[tuple, list[int]] = {}
    for i, key in enumerate(zip(*(columns[name].tolist() for name in names), strict=True)):
        rows.setdefault(key, []).append(i)
    return {key: np.array(indices) for key, indices in rows.items()}


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes a record of lines of cells; None, a number without meaning, is an empty cell."""
    with write_record(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)


def read_predictions(path: Path, num_classes: int | None = None) -> pa.Table:
    """Returns the predictions of a run so far; see `read_table`.

    `num_classes`: K; None: as many as the file has scores of.
    """
    if num_classes is None:
        scored = [name for name in read_table(path).column_names if name.startswith("score_")]
        num_classes = len(scored) or 2
    return read_table(path, record_schema(num_classes))


def derive_results(table: pa.Table) -> list[tuple[Key, Metrics]]:
    """Returns (key, metrics) of every classifier and evaluation, in the order of the records."""
    columns = to_columns(table)
    scores = read_scores(columns)
    rows = group_rows(columns, KEYS)
    clean = {
        (key[0], columns["example"][i]): columns["predicted"][i]
        for key, indices in rows.items()
        if key[2] == "clean"
        for i in indices
    }
    results = []
    for key, indices in rows.items():
        label, predicted = (columns[c][indices] for c in ("label", "predicted"))
        before = None
        if key[2] != "clean":
            before = np.array([clean[key[0], columns["example"][i]] for i in indices])
        results.append((key, summarize(label, scores[indices], predicted, before)))
    return results


def write_results(
    path: Path, dataset: str, model: str, results: Sequence[tuple[Key, Metrics]]
) -> None:
    """Writes `results.csv`."""
    rows = ((dataset, model, *key, *(getattr(m, name) for name in METRICS)) for key, m in results)
    write_csv(path, [COLUMNS, *rows])


def worst_case(table: pa.Table) -> dict[tuple[str, str], dict[str, bool]]:
    """Returns (defense, threat model) -> example -> is it correct clean and under every attack?

    The clean image counts, as an attacker may leave an image unchanged. The threat model "none" is
    the clean image alone.
    """
    correct = correct_by(to_columns(table), ("defense", "threat_model", "example"))
    found: dict[tuple[str, str], dict[str, bool]] = {}
    for (defense, threat, example), good in correct.items():
        both = good and correct[defense, "none", example]
        found.setdefault((defense, threat), {})[example] = both
    return found


def correct_by(columns: Columns, names: Sequence[str]) -> dict[tuple, bool]:
    """Returns (values of `names`) -> are all records that have them correct?"""
    keys = zip(*(columns[name].tolist() for name in names), strict=True)
    return correct_in_all(keys, columns["predicted"] == columns["label"])


def print_results(
    console: Console, table: pa.Table, results: Sequence[tuple[Key, Metrics]]
) -> None:
    """Prints accuracies, a line for each classifier and threat model.

    Their intervals are those of the report: by patient, where patients repeat.
    """
    metrics = {(key[0], key[1], key[2]): m for key, m in results}
    attacks = list(dict.fromkeys(key[2] for key, _ in results if key[2] != "clean"))
    title = "Accuracy (95 % interval); worst: right clean and under every attack"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("defense", "threat", "clean", *attacks, "worst"):
        left = header in ("defense", "threat")
        shown.add_column(header, justify="left" if left else "right", no_wrap=True)
    # A narrow terminal shows no intervals; they are in the report.
    wide, notes = console.width >= 79 + 8 * len(attacks), []
    groups = dict(zip(*(table[name].to_pylist() for name in ("example", "group")), strict=True))
    every = worst_case(table)
    for (defense, threat), correct in every.items():
        if threat != "none":
            cells = [metrics.get((defense, threat, attack)) for attack in attacks]
            shown.add_row(
                defense, threat, _accuracy(every[defense, "none"], groups, wide),
                *("–" if cell is None else f"{cell.accuracy:.3f}" for cell in cells),
                _accuracy(correct, groups, wide),
            )  # fmt: skip
    for (defense, _, evaluation, _), m in results:
        notes += [f"{defense} {evaluation}: no {c}: {why}" for c, why in m.reasons.items()]
    console.print(shown)
    for note in dict.fromkeys([*([METHODS] if wide else []), *notes]):
        console.print(note, highlight=False, markup=False)


def _accuracy(correct: Mapping[str, bool], groups: Mapping[str, str], wide: bool) -> str:
    """Returns the share correct, if `wide` with its interval and the interval's method."""
    good, of = np.array([*correct.values()]), np.array([groups[each] for each in correct])
    interval = proportion_interval(good, of) if wide else None
    if interval is None:
        return f"{good.mean():.3f}"
    low, high = interval
    return f"{good.mean():.3f} ({low:.3f}–{high:.3f} {proportion_method(good, of)})"
