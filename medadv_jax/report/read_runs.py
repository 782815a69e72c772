"""Reads what a report needs: the files of run directories, checked, and the runs of sweeps."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medadv_jax.config import flatten, read_saved_config
from medadv_jax.errors import UserError
from medadv_jax.evaluation.certificates import CERTIFICATES
from medadv_jax.evaluation.interpretability import INTERPRETABILITY, MAPS
from medadv_jax.evaluation.predictions import (
    KEYS,
    Columns,
    Key,
    group_rows,
    read_arrays,
    read_scores,
    read_table,
    to_columns,
)
from medadv_jax.evaluation.record_names import LABEL_RESULTS
from medadv_jax.evaluation.uncertainty import CALIBRATION
from medadv_jax.files import read_json, read_metrics, read_record
from medadv_jax.report.records import Outcome, RunRecords

JOURNAL = "sweep.json"  # of a sweep, in its folder
_NEEDED = (
    "defense", "threat_model", "evaluation", "epsilon", "example", "group", "magnification",
    "label", "predicted",
)  # fmt: skip
_CONFIG_NEEDED = {
    "seed": int, "data.name": str, "data.num_folds": int, "data.fold": int, "model.name": str,
    "attack.epsilon": int | float, "eval.num_steps": int,
}  # fmt: skip


def load_run(path: Path) -> RunRecords:
    """Reads a run directory.

    Raises:
      UserError: no such directory, no predictions in it, or records that do not fit together.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: not a run directory, it has no config.json; give a --workdir")
    if (path / LABEL_RESULTS).is_file():
        raise UserError(f"{path}: with several labels an image it has {LABEL_RESULTS}, no page")
    if not (path / "predictions.parquet").is_file():
        raise UserError(f"{path}: it has no predictions.parquet; let the run come to its end")
    about = read_saved_config(path / "config.json")
    _check_config(path / "config.json", about["config"])
    run = load_records(path, about)
    shape = next(iter(run.outcomes.values())).score.shape
    found, named = shape[1] if len(shape) > 1 else 2, len(run.class_names)
    if found != named:
        raise UserError(
            f"{path / 'predictions.parquet'}: has scores of {found} classes, and splits.json"
            f" names {named}; remove the file and evaluate again"
        )
    return run


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Raises UserError unless the fields that a report reads are there, and of their types."""
    fields = flatten(config)
    for name, kind in _CONFIG_NEEDED.items():
        value = fields.get(name, 0 if name in ("seed", "data.num_folds", "data.fold") else None)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise UserError(f"{path}: config.{name}={value!r} cannot be; put the file back")
    if not 0 <= fields["attack.epsilon"] < float("inf"):
        raise UserError(f"{path}: config.attack.epsilon must be a finite number of at least 0")


def load_records(path: Path, about: dict[str, Any]) -> RunRecords:
    """Reads the records of a folder that has predictions.

    Args:
      path: the folder.
      about: the content of config.json.
    """
    columns = to_columns(read_table(path / "predictions.parquet"))
    lost = [name for name in _NEEDED if name not in columns]
    lost += [] if {"score", "score_0"} & {*columns} else ["score"]
    if lost:
        raise UserError(f"{path / 'predictions.parquet'}: has no column {', '.join(lost)}")
    examples, outcomes = _align(path, columns)
    return RunRecords(
        path=path,
        config=about["config"],
        about={name: value for name, value in about.items() if name != "config"},
        **examples,
        outcomes=outcomes,
        training=read_metrics(path / "metrics.jsonl"),
        curves=to_columns(read_table(path / "curves.parquet")) or None,
        pictures=read_arrays(path / "pictures.npz") or None,
        detection=_csv(path / "detection.csv"),
        checks=_json(path / "self_checks.json") or None,
        splits=_json(path / "splits.json"),
        certificates=to_columns(read_table(path / CERTIFICATES)) or None,
        cost=_json(path / "training_cost.json"),
        inference_cost=_json(path / "inference_cost.json"),
        interpretability=to_columns(read_table(path / INTERPRETABILITY)) or None,
        saliency_maps=read_arrays(path / MAPS),
        calibration=to_columns(read_table(path / CALIBRATION)) or None,
    )


def _align(path: Path, columns: Columns) -> tuple[dict[str, np.ndarray], dict[Key, Outcome]]:
    """Returns what is known of the examples, and the outcomes in their order."""
    n_rows = len(columns["example"])
    if not n_rows:
        raise UserError(f"{path / 'predictions.parquet'}: no rows; let the run come to its end")
    ids, first, place = np.unique(columns["example"], return_index=True, return_inverse=True)
    examples = {"example": ids}
    for name in ("label", "group", "magnification", "subtype"):
        values = columns.get(name)  # runs made before subtypes were recorded have none
        examples[name] = np.full(len(ids), "") if values is None else values[first]
    outcomes, scores = {}, read_scores(columns)
    for key, indices in group_rows(columns, KEYS).items():
        order = np.argsort(place[indices], kind="stable")
        if not np.array_equal(place[indices][order], np.arange(len(ids))):
            raise UserError(
                f"{path / 'predictions.parquet'}: {' '.join(map(str, key))} has {len(indices)} rows"
                f" for {len(ids)} test examples; remove the file and evaluate again"
            )
        at = indices[order]
        outcomes[key] = Outcome(scores[at].astype(float), columns["predicted"][at])
    for defense in {key[0] for key in outcomes}:
        if (defense, "none", "clean", 0.0) not in outcomes:
            raise UserError(
                f"{path / 'predictions.parquet'}: {defense} has no clean predictions; remove the"
                " file and evaluate again"
            )
    return examples, outcomes


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, read=dict) if path.is_file() else {}


def _csv(path: Path) -> list[dict[str, str]]:
    text = read_record(path).decode(errors="replace") if path.is_file() else ""
    return list(csv.DictReader(text.splitlines()))


def expand(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Returns the paths with every sweep replaced by its finished cells, and what is missing.

    Raises:
      UserError: a sweep without a finished cell.
    """
    expanded: list[Path] = []
    missing: list[str] = []
    for path in paths:
        if not (path / JOURNAL).is_file():
            expanded.append(path)
            continue
        cells = read_sweep(path)
        # results.csv is written after every stage but the report.
        finished = [name for name in cells if (path / name / "results.csv").is_file()]
        if not finished:
            raise UserError(f"{path}: no cell of this sweep is finished; run scripts/sweep.py on")
        expanded += [path / name for name in finished]
        missing += [
            f"Cell {name} is missing from these tables:"
            f" {row['failure'] or 'it has not been finished'}."
            for name, row in cells.items()
            if name not in finished
        ]
    return expanded, missing


def read_sweep(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what the journal of a sweep holds of each cell, by name; {}: there is no journal.

    Of every cell at least "failure": why it failed last, one line, "" if it did not.

    Raises:
      UserError: the journal is damaged.
    """
    path = folder / JOURNAL
    if not path.is_file():
        return {}

    def read(content: Any) -> dict[str, dict[str, Any]]:
        rows = content["cells"]
        return {name: {**row, "failure": str(row["failure"])} for name, row in rows.items()}

    return read_json(path, "remove it", read)
