"""Trained classifiers on the images of another data set: `elsewhere.json` of their run.

evaluate_elsewhere(Path("runs/x"), Path("scans"), ["hybrid"], "apgd")
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from medadv_jax.classifier import to_pixels
from medadv_jax.data.bounded import BadImageError
from medadv_jax.data.examples import UNKNOWN_PATIENT
from medadv_jax.data.labelled_files import Labelled, label_files, published_as
from medadv_jax.data.source import UnlabelledError
from medadv_jax.deployment.from_run import run_defenses
from medadv_jax.deployment.model import Model, load
from medadv_jax.deployment.model_folder import is_model_folder
from medadv_jax.errors import UserError
from medadv_jax.evaluation.checks.result import headline
from medadv_jax.evaluation.evaluate import CHECK_IMAGES, evaluate
from medadv_jax.evaluation.model_under_test import choose_examples
from medadv_jax.evaluation.predictions import write_csv
from medadv_jax.evaluation.record_names import ELSEWHERE
from medadv_jax.evaluation.robustness import Robustness
from medadv_jax.evaluation.statistics import proportion_interval, wilson_interval
from medadv_jax.experiment.evaluate_run import check_attacks, result_lines
from medadv_jax.files import read_json, write_json
from medadv_jax.progress import default_console, say

_EPSILON = 0.03  # where the model folder names no radius
_KEY = ("defense", "data", "attacks", "epsilon", "norm")


class Images(NamedTuple):
    """Images (n, S, S, 3) uint8 with labels (n,) int32, their files, and how many are damaged."""

    pixels: np.ndarray
    labels: np.ndarray
    files: list[Labelled]
    part: str
    unreadable: int


def evaluate_elsewhere(
    path: Path,
    data: Path,
    defenses: Sequence[str] = (),
    attacks: str = "autoattack",
    epsilon: float | None = None,
    count: int = 0,
    output: Path | None = None,
    check_images: int = CHECK_IMAGES,
) -> dict[str, Robustness]:
    """Evaluates classifiers on the test split of another data set, or on a folder of images.

    Prints the results, and keeps them in `elsewhere.json` of the run, if the model is of one.

    Args:
      path: a run directory, or a model folder.
      data: folder of the images; see `label_files`.
      defenses: classifiers of the run; none: all. Of a model folder its own.
      attacks, epsilon, count, output, check_images: as for `evaluate_run`; an image's file stands
        in the CSV. Radius and norm are those that the model was evaluated at.

    Returns:
      The result of each classifier.

    Raises:
      UserError: no model, no images, classes that the model does not have, an unknown attack.
    """
    console, results, files = default_console(), {}, []
    for name, model in _models(path, defenses):
        made = model.description.evaluation.get("attack", {})
        radius = made.get("radius", _EPSILON) if epsilon is None else epsilon
        norm = made.get("norm", "linf")
        check_attacks(attacks, radius, norm)
        images = _read_images(model, data, count)
        files = [file.place for file, _ in images.files]
        say(console, f"{name}: {len(files)} images of {data.name} ({images.part}) under {attacks}")
        if images.unreadable:
            say(console, f"note: {images.unreadable} files are no usable images, and left out")
        pixels = np.asarray(to_pixels(jnp.asarray(images.pixels)))
        results[name] = found = evaluate(
            model.logits, pixels, images.labels, radius, norm, attacks,
            surrogates=model.surrogates(), check_images=check_images,
        )  # fmt: skip
        say(console, found.summary())
        _keep(path, name, model, data, images, attacks, found, console)
    if output is not None:
        write_csv(output, result_lines(results, files))
    return results


def _models(path: Path, defenses: Sequence[str]) -> Iterator[tuple[str, Model]]:
    """Yields the classifiers, each when the one before is done with."""
    if is_model_folder(path) or not (path / "config.json").is_file():
        model = load(path, *defenses[:1])
        yield str(model.description.evaluation.get("defense") or path.name), model
        return
    for name in defenses or run_defenses(path):
        yield name, load(path, name)


def _read_images(model: Model, data: Path, count: int) -> Images:
    files, part = label_files(data, model.classes)
    if count:
        labels = np.array([parsed.label for _, parsed in files], np.int32)
        files = [files[i] for i in choose_examples(labels, count, seed=0)]
    pixels, kept = [], []
    for file, parsed in files:
        try:
            pixels.append(model.read(data / file.path))
            kept.append((file, parsed))
        except (BadImageError, OSError):
            continue
    if not kept:
        raise UserError(f"--data={data}: none of {len(files)} files is a usable image")
    labels = np.array([parsed.label for _, parsed in kept], np.int32)
    return Images(np.stack(pixels), labels, kept, part, len(files) - len(kept))


def _keep(
    path: Path,
    name: str,
    model: Model,
    data: Path,
    images: Images,
    attacks: str,
    found: Robustness,
    console: Console,
) -> None:
    """Writes a result into `elsewhere.json` of the run, in place of an earlier one of its kind."""
    run = path.resolve().parents[1] if is_model_folder(path) else path
    if not (run / "config.json").is_file():
        say(console, "note: the model is of no run at hand; nothing is recorded")
        return
    known = _of_training_patients(run, model.classes, images.files)
    groups = np.array([parsed.group for _, parsed in images.files])
    rows = [_row("all", found, groups, np.ones(len(groups), bool))]
    if known.any():
        say(console, f"note: {known.sum()} images are of patients whom the model was trained on")
    if known.any() and not known.all():
        rows.append(_row("of no training patient", found, groups, ~known))
    new = {
        "defense": name, "data": data.resolve().name, "attacks": attacks,
        "epsilon": found.epsilon, "norm": found.norm, "part": images.part,
        "unreadable": images.unreadable, "of_training_patients": int(known.sum()),
        "checks": headline(found.checks) if found.checks else "not made",
        "rows": rows,
    }  # fmt: skip
    before = read_json(run / ELSEWHERE) if (run / ELSEWHERE).is_file() else []
    others = [each for each in before if any(each.get(key) != new[key] for key in _KEY)]
    write_json(run / ELSEWHERE, [*others, new])
    say(console, str(run / ELSEWHERE))


def _row(images: str, found: Robustness, groups: np.ndarray, of: np.ndarray) -> dict[str, Any]:
    """Returns accuracies of a part of the images, with 95 % intervals by patient where known."""
    row: dict[str, Any] = {"images": images, "n": int(of.sum())}
    unknown = any(str(group).startswith(UNKNOWN_PATIENT) for group in groups)
    row["patients"] = None if unknown else len({*groups[of]})
    for prefix, correct in (("", found.predicted == found.labels), ("attacked_", found.robust)):
        good = correct[of]
        interval = proportion_interval(good, groups[of])
        low, high = interval or wilson_interval(int(good.sum()), len(good))
        row[f"{prefix}accuracy"] = float(good.mean())
        row[f"{prefix}low"], row[f"{prefix}high"] = low, high
    return row


def _of_training_patients(
    run: Path, classes: Sequence[str], files: Sequence[Labelled]
) -> np.ndarray:
    """Returns (n,) bool: does an image share its name or patient with a training image?

    Those of the validation split, which choose the checkpoint, count as training images.
    """
    splits = read_json(run / "splits.json")
    names = {PurePosixPath(id_).stem for id_ in [*splits["train"], *splits["validation"]]}
    builder, patients = published_as(classes), set()
    if builder is not None:
        for name in names:
            with contextlib.suppress(UnlabelledError):
                patients.add(builder.parse(f"{name}{builder.SUFFIXES[0]}").group)
    return np.array([
        PurePosixPath(file.place).stem in names or parsed.group in patients
        for file, parsed in files
    ])  # fmt: skip
