"""The model folders of a run: `models/<defense>/`, from its checkpoints and records."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medadv_jax.attacks.from_config import restriction_from_config
from medadv_jax.classifier import Classifier, Variables, to_pixels
from medadv_jax.config import Config, read_saved_config
from medadv_jax.data.images import WHITE
from medadv_jax.data.splits import saved_class_names
from medadv_jax.defenses import get_defense
from medadv_jax.defenses.detectors import DETECTORS, threshold_at
from medadv_jax.deployment.description import (
    Description,
    describe_network,
    describe_purifier,
    usable_detectors,
)
from medadv_jax.deployment.model_folder import read_model_folder, write_model_folder
from medadv_jax.errors import UserError
from medadv_jax.evaluation.checks.result import headline, read_self_checks
from medadv_jax.evaluation.decision_threshold import read_thresholds
from medadv_jax.evaluation.predictions import Columns, correct_by, read_predictions, to_columns
from medadv_jax.evaluation.statistics import proportion_interval, wilson_interval
from medadv_jax.files import read_json, sha256
from medadv_jax.training.checkpoints import tree_sha256
from medadv_jax.training.classifiers import Classifiers

# Places on the machine of the run, which are nobody else's business.
_PLACES = ("compile_cache", "reuse", "data.dir", "data.cache_dir", "data.official_list")
_CHECKED_BY_ALL = ("", "all")


def save_model(
    run: Path,
    name: str,
    classifier: Classifier,
    variables: Variables,
    validation: Callable[[], Iterable[np.ndarray]],
) -> bool:
    """Writes `models/<name>/` of a run whose records are complete.

    Args:
      run: its directory.
      name: of the defence.
      classifier: as it is deployed.
      variables: of the best checkpoint.
      validation: returns batches (B, S, S, 3) uint8, on which the detectors are calibrated; not
        called where `config.detector.run` is off.

    Returns:
      Whether it was written; False: it was there.
    """
    folder = run / "models" / name
    own: Variables = jax.tree.map(np.asarray, variables)
    new, before = describe_run(run, name, classifier, own), _read_whole(folder)
    if before and before.weights["tensors"] == new.weights["tensors"]:
        new = dataclasses.replace(new, detectors=before.detectors, weights=before.weights)
        if before == new:
            return False
    if _config(run).detector.run:
        found = calibrate(classifier, own, validation(), new.false_positive_rate)
        new = dataclasses.replace(new, detectors=found)
    write_model_folder(folder, new, own)
    return True


def _read_whole(folder: Path) -> Description | None:
    """Returns the description of a model folder, None if it is missing or damaged."""
    try:
        return read_model_folder(folder)[0]
    except UserError:
        return None


def calibrate(
    classifier: Classifier,
    variables: Variables,
    validation: Iterable[np.ndarray],
    false_positive_rate: float,
) -> dict[str, float]:
    """Returns name -> threshold of every detector that the classifier can have.

    Args:
      classifier: with its purifier, if it has one.
      variables: of the classifier.
      validation: batches (B, S, S, 3) uint8 of clean images.
      false_positive_rate: at most this share of them is flagged.
    """
    names = usable_detectors(classifier)
    score = jax.jit(lambda v, x: {name: DETECTORS[name](classifier, v, x) for name in names})
    found = [
        jax.device_get(score(variables, to_pixels(jnp.asarray(images)))) for images in validation
    ]
    return {
        name: threshold_at(np.concatenate([each[name] for each in found]), false_positive_rate)
        for name in names
    }


def restore_model(run: Path, name: str) -> tuple[Description, Classifier, Variables]:
    """Returns a classifier of a run from its checkpoint; writes nothing.

    Its detectors have no thresholds.

    Raises:
      UserError: the run has no such classifier, or it is damaged.
    """
    config = _config(run)
    defense = get_defense(name)
    if defense.training(config).epochs and not (run / "checkpoints" / name).is_dir():
        raise UserError(f"{run}: checkpoints/{name} is missing; let the run finish first")
    made = Classifiers(config, run, _classes(run, config))
    variables: Variables = jax.tree.map(np.asarray, made.variables(defense))
    classifier = made.classifier(defense)
    return describe_run(run, name, classifier, variables), classifier, variables


def run_defenses(run: Path) -> list[str]:
    """Returns the names of a run's classifiers; UserError if its config is damaged."""
    return _config(run).defenses.split(",")


def describe_run(run: Path, name: str, classifier: Classifier, variables: Variables) -> Description:
    """Returns the description of a run's classifier, without thresholds of detectors."""
    config, splits = _config(run), read_json(run / "splits.json")
    chosen = read_thresholds(run)
    return Description(
        network=describe_network(classifier.network, config.model.name),
        purifier=describe_purifier(classifier.purifier, config.purifier.name),
        normalization=classifier.normalization,
        classes=_classes(run, config),
        image_size=config.data.image_size,
        fit=config.data.fit,
        logit_bias=chosen[name].bias if name in chosen else 0.0,
        white=splits.get("data", {}).get("white", WHITE),
        false_positive_rate=config.detector.false_positive_rate,
        weights={"tensors": tree_sha256(variables)},
        evaluation=measured(run, name, config, splits),
        provenance=_provenance(run, splits),
    )


def measured(run: Path, name: str, config: Config, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run measured of a classifier; its `results` are empty before it is evaluated.

    Accuracies have 95 % intervals, honest about several images of a patient. "worst": correct when
    clean and under every attack of a threat model.
    """
    evaluation, attack = config.eval, config.attack
    labels = {"labels": "several"} if "findings" in splits else {}
    restriction = restriction_from_config(config).suffix.strip("_").replace("_", " ")
    return labels | {
        "defense": name,
        "dataset": config.data.name,
        "split": {"done": splits.get("done", config.data.split), "counts": splits["counts"]},
        "attack": {
            "norm": attack.norm,
            "radius": attack.epsilon,
            "steps": evaluation.num_steps,
            "restarts of PGD": evaluation.restarts,
            "steps of APGD": evaluation.apgd_steps,
            **({"may change": restriction} if restriction else {}),
        },
        "results": _results(run, name),
        "self_checks": _self_checks(run, name),
    }


def _results(run: Path, name: str) -> list[dict[str, Any]]:
    columns = to_columns(read_predictions(run / "predictions.parquet"))
    mine = columns["defense"] == name
    columns = {key: values[mine] for key, values in columns.items()}
    group = dict(zip(columns["example"].tolist(), columns["group"].tolist(), strict=True))
    found = _correct_by(columns, ("threat_model", "evaluation", "epsilon"))
    clean = found.get(("none", "clean", 0.0), {})
    rows = [_row(key, of, group) for key, of in found.items()]
    for (threat, epsilon), of in _correct_by(columns, ("threat_model", "epsilon")).items():
        if threat != "none":
            worst = {example: good and of[example] for example, good in clean.items()}
            rows.append(_row((threat, "worst", epsilon), worst, group))
    return rows


def _correct_by(columns: Columns, names: Sequence[str]) -> dict[tuple, dict[str, bool]]:
    """Returns (values of `names`) -> example -> are all of its records correct?"""
    found: dict[tuple, dict[str, bool]] = {}
    for (*key, example), good in correct_by(columns, (*names, "example")).items():
        found.setdefault(tuple(key), {})[example] = good
    return found


def _row(key: tuple, correct: Mapping[str, bool], group: Mapping[str, str]) -> dict[str, Any]:
    good = np.array([*correct.values()])
    interval = proportion_interval(good, np.array([group[example] for example in correct]))
    low, high = interval or wilson_interval(int(good.sum()), len(good))
    row: dict[str, Any] = dict(zip(("threat_model", "evaluation", "epsilon"), key, strict=True))
    return row | {"n": len(good), "accuracy": float(good.mean()), "low": low, "high": high}


def _self_checks(run: Path, name: str) -> dict[str, Any] | None:
    every = read_self_checks(run / "self_checks.json")
    checks = [each for each in every if each.defense in (name, *_CHECKED_BY_ALL)]
    if not checks:
        return None
    others = [each for each in checks if each.verdict != "pass"]
    return {
        "headline": headline(checks),
        "passed": len(checks) - len(others),
        "made": len(checks),
        "others": [f"{c.verdict}: {c.number} {c.name}: {c.explanation}" for c in others],
    }


def _provenance(run: Path, splits: Mapping[str, Any]) -> dict[str, Any]:
    saved = read_saved_config(run / "config.json")
    config: Config = ConfigDict(saved["config"])
    for place in _PLACES:
        section, _, field = place.rpartition(".")
        (config[section] if section else config)[field] = ""
    config.model.weights = Path(config.model.weights).name
    sums = json.dumps(sorted(splits["md5"].values())).encode() if "md5" in splits else None
    return {
        "git_commit": saved.get("git_commit", ""),
        "device": saved.get("device", ""),
        "data_sha256": sha256(sums) if sums else "",  # of the sorted md5 sums of all images
        "versions": saved.get("versions", {}),
        "config": config.to_dict(),
    }


def _config(run: Path) -> Config:
    return ConfigDict(read_saved_config(run / "config.json")["config"])


def _classes(run: Path, config: Config) -> tuple[str, ...]:
    return saved_class_names(read_json(run / "splits.json"), config.data.name)
