"""Attacked copies of images as 8-bit pixels, and the labels that an attack starts from."""

import csv
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from medadv_jax.attacks import ATTACKS, make_attack
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.deployment.model import Model, Predictions
from medadv_jax.errors import UserError
from medadv_jax.evaluation.evaluate import evaluate

_BATCH = 32  # images at a time, at most
Labels = Mapping[str, int] | int | None  # file -> label; the label of all files; not known


def attack_images(
    model: Model, images: np.ndarray, labels: np.ndarray, attack: str, epsilon: float
) -> tuple[np.ndarray, Predictions]:
    """Attacks a model whose attacker knows all of it, its purifier included (l∞).

    Args:
      model: the model.
      images: (n, S, S, 3) uint8.
      labels: (n,) integer, the true classes.
      attack: its name.
      epsilon: radius, in pixels of [0, 1].

    Returns:
      (n, S, S, 3) uint8, within `epsilon` of the images, and what the model says of them. Pixels
      are rounded to 8 bits, which may undo an attack; of several attempts, and the image itself,
      the one with the lowest probability of the label after rounding counts.
    """
    pixels, size = images.astype(np.float32) / 255, min(_BATCH, len(images))
    if attack in ATTACKS:
        found = [_first_order(model, pixels, labels, attack, epsilon, of) for of in _sources(model)]
    else:
        found = [evaluate(
            model.logits, pixels, labels, epsilon, "linf", attack,
            surrogates=model.surrogates(), check_images=0, progress=False,
        ).pixels]  # fmt: skip
    tried = np.stack([images, *(round_in_ball(each, images, epsilon) for each in found)])
    said = [model.predict(each, size, detect=False).probability for each in tried]
    rows = np.arange(len(images))
    best = np.stack([probability[rows, labels] for probability in said]).argmin(axis=0)
    chosen = tried[best, rows]
    return chosen, model.predict(chosen, size, detect=False)


def _sources(model: Model) -> list[str]:
    """What the attacker differentiates; see `Classifier.logits`."""
    return [model.gradient, *(["bpda"] if model.classifier.purifier is not None else [])]


def _first_order(
    model: Model, pixels: np.ndarray, labels: np.ndarray, name: str, epsilon: float, gradient: str
) -> np.ndarray:
    """Returns what an attack of `ATTACKS` finds at its highest loss, (n, S, S, 3)."""
    run, size = _compiled(model.classifier, name, gradient), min(_BATCH, len(pixels))
    found = []
    for first in range(0, len(pixels), size):
        rows = np.arange(first, first + size) % len(pixels)  # the last batch is filled up
        found.append(np.asarray(run(model.variables, pixels[rows], labels[rows], epsilon)))
    return np.concatenate(found)[: len(pixels)]


@functools.lru_cache(maxsize=8)
def _compiled(classifier: Classifier, name: str, gradient: str) -> Callable[..., jax.Array]:
    """Returns (variables, pixels, labels, epsilon) -> attacked pixels, for all radii."""

    @jax.jit
    def run(
        variables: Variables, pixels: jax.Array, labels: jax.Array, epsilon: jax.Array
    ) -> jax.Array:
        attack = make_attack(name, epsilon, keep_best=name != "fgsm")
        function = functools.partial(classifier.logits, variables, gradient=gradient)
        return attack(function, pixels, labels, jax.random.key(0))

    return run


def round_in_ball(pixels: np.ndarray, images: np.ndarray, epsilon: float) -> np.ndarray:
    """Returns the nearest 8-bit values that are at most `epsilon` away from 8-bit images.

    Args:
      pixels: (n, S, S, 3) float32 in [0, 1].
      images: (n, S, S, 3) uint8.
      epsilon: radius, in pixels of [0, 1].
    """
    most = int(255 * epsilon + 1e-6)
    change = np.rint(255 * pixels.astype(np.float64)) - images
    return (images + np.clip(change, -most, most)).clip(0, 255).astype(np.uint8)


def read_labels(labels: str, classes: Sequence[str]) -> Labels:
    """Returns the true classes of files.

    Args:
      labels: a CSV file with the columns file and label; or a class, of all images; "": none.
      classes: names of label 0, 1, …; a label is a name or a number.

    Raises:
      UserError: neither a file nor a class, or a file with an unknown class.
    """
    if not labels:
        return None
    known = {str(i): i for i in range(len(classes))} | {n: i for i, n in enumerate(classes)}
    if labels in known:
        return known[labels]
    try:
        with Path(labels).open(encoding="utf-8", newline="") as file:
            return {row["file"]: known[row["label"]] for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"--labels={labels}: {reason}; give a class ({', '.join(classes)}), or a CSV file with"
            " the columns file and label"
        ) from error


def choose_labels(files: Sequence[str], labels: Labels) -> list[int | None]:
    """Returns the label of each file, None where none is known.

    A file is looked up by its path as it was given, then by its name alone.

    Raises:
      UserError: there are labels, but none for one of the files.
    """
    if labels is None or isinstance(labels, int):
        return [labels] * len(files)
    found = [labels.get(file, labels.get(Path(file).name)) for file in files]
    if None in found:
        raise UserError(f"--labels: no label for {files[found.index(None)]}; add a line for it")
    return found
