"""Synthetic run directories with every file that a report can read.

Predictions come from a simple model: an image has a margin, and is correct if it is positive. The
patient shifts the margin, an attack lowers it. No network is involved.
"""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medadv_jax.evaluation.predictions import SCHEMA

ATTACKS = {"fgsm": 1.0, "pgd": 1.5, "bim": 1.45, "mifgsm": 1.3}  # strength
# Factor on the strength of an attack, by defence and threat model.
HARM = {
    "base": {"adaptive": 3.0},
    "adversarial": {"transfer": 0.15, "adaptive": 0.8},
    "autoencoder": {"transfer": 0.5, "oblivious": 0.6, "adaptive": 2.6},
    "hybrid": {"transfer": 0.1, "oblivious": 0.3, "adaptive": 0.75},
}
CLEAN_MARGIN = {"base": 2.2, "adversarial": 1.9, "autoencoder": 1.8, "hybrid": 1.75}
MAGNIFICATIONS, SUBTYPES = (40, 100, 200, 400), (("A", "F"), ("DC", "LC"))


def make_run(
    path: Path,
    *,
    dataset: str = "breakhis",
    model: str = "resnet50",
    seed: int = 0,
    images: int = 160,
    patients: int = 40,
    defenses: Sequence[str] = tuple(HARM),
    optional: bool = True,
    headline: str = "trusted",
    config: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """Writes a run directory and returns it.

    Args:
      path: the directory.
      dataset, model, seed: as in a config.
      images, patients: of the test split; a patient has one class.
      defenses: of HARM.
      optional: also writes curves, pictures, detection and self-checks.
      headline: of the self-checks.
      config: fields to override, by section.
    """
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    examples = _examples(rng, images, patients, dataset)
    _write_config(path, dataset, model, seed, defenses, config or {})
    tables = [_rows(examples, key, *_predict(rng, examples, *key)) for key in _keys(defenses)]
    pq.write_table(pa.concat_tables(tables), path / "predictions.parquet")
    _write_metrics(path, defenses)
    (path / "splits.json").write_text(json.dumps({"notes": ["28 exact copies dropped"]}))
    if optional:
        _write_curves(path, rng, examples, defenses)
        _write_pictures(path, rng, examples, defenses)
        _write_detection(path)
        _write_checks(path, headline)
    return path


def _examples(rng: np.random.Generator, images: int, patients: int, dataset: str) -> dict[str, Any]:
    patient = np.arange(images) % patients
    label = (patient % 2).astype(np.int32)
    breakhis = dataset == "breakhis"
    return {
        "example": [f"image-{i:04d}" for i in range(images)],
        "group": [f"patient-{p:03d}" for p in patient],
        "magnification": rng.choice(MAGNIFICATIONS, images) if breakhis else np.zeros(images, int),
        "subtype": [SUBTYPES[y][int(rng.integers(2))] if breakhis else "" for y in label],
        "label": label,
        "difficulty": rng.normal(size=patients)[patient] * 0.8 + rng.normal(size=images),
    }


def _keys(defenses: Sequence[str]) -> list[tuple[str, str, str, float]]:
    keys = []
    for defense in defenses:
        keys.append((defense, "none", "clean", 0.0))
        keys += [(defense, t, a, 0.03) for t in HARM[defense] for a in ATTACKS]
    return keys


def _predict(
    rng: np.random.Generator, examples: dict[str, Any], defense: str, threat: str, evaluation: str,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns score and prediction of each example."""
    harm = 0.0
    if evaluation != "clean":
        harm = HARM[defense][threat] * ATTACKS[evaluation] * epsilon / 0.03
    noise = rng.normal(scale=0.15, size=len(examples["label"]))
    margin = CLEAN_MARGIN[defense] - examples["difficulty"] - harm + noise
    true = 1 / (1 + np.exp(-2 * margin))
    score = np.where(examples["label"] == 1, true, 1 - true).astype(np.float32)
    return score, (score > 0.5).astype(np.int32)


def _rows(
    examples: dict[str, Any], key: tuple[str, str, str, float], score: np.ndarray,
    predicted: np.ndarray,
) -> pa.Table:  # fmt: skip
    n = len(score)
    columns = dict(
        zip(
            ("defense", "threat_model", "evaluation", "epsilon"),
            ([k] * n for k in key),
            strict=True,
        )
    )
    columns |= {k: v for k, v in examples.items() if k != "difficulty"}
    columns |= {"score": score, "predicted": predicted}
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def _write_config(
    path: Path, dataset: str, model: str, seed: int, defenses: Sequence[str],
    overrides: dict[str, dict[str, Any]],
) -> None:  # fmt: skip
    config: dict[str, Any] = {
        "attack": {"epsilon": 0.03, "norm": "linf"},
        "data": {
            "name": dataset,
            "split": "patient",
            "image_size": 64,
            "fold": 0,
            "cache_dir": "c",
        },
        "defenses": ",".join(defenses),
        "eval": {"attacks": ",".join(ATTACKS), "num_steps": 10},
        "model": {"name": model, "width": 0.5},
        "seed": seed,
        "train": {"epochs": 6},
    }
    for section, fields in overrides.items():
        config[section] |= fields
    content = {
        "config": config, "versions": {"jax": "0.10.2"}, "device": "1 × cpu (cpu)",
        "git_commit": "0" * 40,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(content))


def _write_metrics(path: Path, defenses: Sequence[str]) -> None:
    lines = []
    for defense in defenses:
        for epoch in range(1, 7):
            line = {"defense": defense, "step": 10 * epoch, "epoch": epoch, "loss": 0.7 / epoch}
            if defense != "autoencoder":
                line |= {"accuracy": 1 - 0.4 / epoch, "validation_accuracy": 0.9 - 0.3 / epoch}
            if defense in ("adversarial", "hybrid"):
                line["adversarial_accuracy"] = 0.8 - 0.4 / epoch
            lines.append(json.dumps(line | {"validation_loss": 0.8 / epoch}))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _write_curves(
    path: Path, rng: np.random.Generator, examples: dict[str, Any], defenses: Sequence[str]
) -> None:
    subset = {k: v[:64] for k, v in examples.items()}
    points = [(e, 10) for e in (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 1.0)]
    points += [(0.03, steps) for steps in (1, 2, 5, 20, 40)]
    tables = []
    for defense in defenses:
        for epsilon, steps in points:
            harm = epsilon * (1 - 0.5 / steps)
            score, predicted = _predict(rng, subset, defense, "adaptive", "pgd", harm)
            table = _rows(subset, (defense, "adaptive", "pgd", epsilon), score, predicted)
            column = pa.array([steps] * len(score), pa.int32())
            tables.append(table.append_column("num_steps", column))
    pq.write_table(pa.concat_tables(tables), path / "curves.parquet")


def _write_pictures(
    path: Path, rng: np.random.Generator, examples: dict[str, Any], defenses: Sequence[str]
) -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 48), np.linspace(-1, 1, 48))
    images = np.stack(
        [np.exp(-((x - a) ** 2 + (y + a) ** 2) * 2) for a in np.linspace(-0.4, 0.4, 4)]
    )
    images = np.repeat(images[..., None], 3, axis=-1).astype(np.float32)
    arrays: dict[str, Any] = {
        "example": np.array(examples["example"][:4]), "label": examples["label"][:4],
        "images": images, "attack": np.array("pgd"), "epsilon": np.array(0.03),
    }  # fmt: skip
    for defense in defenses:
        shift = 0.03 * rng.choice([-1, 1], images.shape)
        arrays[f"{defense}/adversarial"] = np.clip(images + shift, 0, 1).astype(np.float32)
        arrays[f"{defense}/score_clean"] = rng.random(4)
        arrays[f"{defense}/score_adversarial"] = rng.random(4)
        if "oblivious" in HARM[defense]:
            arrays[f"{defense}/purified"] = images
    np.savez(path / "pictures.npz", **arrays)


def _write_detection(path: Path) -> None:
    header = (
        "detector", "threat_model", "evaluation", "n_clean", "n_attacked", "auc",
        "true_positive_rate", "threshold", "false_positive_rate",
    )  # fmt: skip
    rows = [
        ("reconstruction", "oblivious", "pgd", 160, 160, 0.93, 0.81, 0.0123, 0.05),
        ("reconstruction", "adaptive", "pgd", 160, 160, 0.54, 0.07, 0.0123, 0.05),
    ]
    with (path / "detection.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _write_checks(path: Path, headline: str) -> None:
    verdict = "pass" if headline == "trusted" else "fail"
    checks = [
        {"number": n, "name": f"check {n}", "defense": d, "verdict": "warn" if n == 7 else "pass",
         "value": n / 1000, "explanation": "what was measured, in one line of some length"}
        for n in range(1, 13) for d in ("base", "hybrid")
    ]  # fmt: skip
    checks[8]["verdict"] = verdict
    (path / "self_checks.json").write_text(json.dumps({"headline": headline, "checks": checks}))


def make_transfer(path: Path, runs: Sequence[Path], votes: bool = True) -> Path:
    """Writes the output of scripts/evaluate_runs.py for runs with the same test images."""
    path.mkdir()
    names = [f"{run.name}/{d}" for run in runs for d in ("base", "hybrid")]
    lines = [["made on", *names], ["clean", *["0.9500"] * len(names)]]
    for i, name in enumerate(names):
        lines.append(
            [name, *(f"{0.1 + 0.7 * abs(i - j) / len(names):.4f}" for j in range(len(names)))]
        )
    with (path / "transfer.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    content = {"runs": [str(run) for run in runs], "images": 160, "device": "cpu"}
    (path / "runs.json").write_text(json.dumps(content))
    if votes:
        table = pq.read_table(runs[0] / "predictions.parquet")
        keep = [d == "hybrid" and t in ("none", "adaptive") for d, t in zip(
            *(table[c].to_pylist() for c in ("defense", "threat_model")), strict=True)]  # fmt: skip
        table = table.filter(pa.array(keep))
        named = pa.array(["hybrid/mean"] * table.num_rows)
        pq.write_table(table.set_column(0, "defense", named), path / "predictions.parquet")
    return path


def edit(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrites predictions.parquet."""
    file = path / "predictions.parquet"
    pq.write_table(change(pq.read_table(file)), file)
