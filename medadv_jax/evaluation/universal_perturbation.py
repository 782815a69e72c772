"""Universal perturbations of classifiers: fitted on training images, kept in `universal.npz`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medadv_jax.attacks.universal import Universal
from medadv_jax.evaluation.model_under_test import ModelUnderTest, is_correct
from medadv_jax.evaluation.predictions import read_arrays, write_arrays

PERTURBATIONS = "universal.npz"  # defence -> (H, W, 3) float32


def fit_worst(
    model: ModelUnderTest,
    attack: Universal,
    images: np.ndarray,
    labels: np.ndarray,
    advance: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Returns the perturbation (H, W, 3) that breaks most of the images it is fitted on.

    One is fitted with the gradients of each source of the adaptive attacker. The test images of
    `model` are not looked at.

    Args:
      model: the deployed classifier.
      attack: radius, norm and number of epochs; its batches have the size of the model's.
      images, labels: (n, H, W, 3) float32 in [0, 1] and (n,), of training.
      advance: told the number of images of each step.
    """
    found, correct = [], []
    for source in model.sources:

        def logits_fn(variables: Any, pixels: jax.Array, kind: str = source.gradient) -> jax.Array:
            return model.predictor.attacked.logits(variables, pixels, kind)

        variables = model.predictor.fold(source.variables)
        delta = attack.fit(
            logits_fn, variables, images, labels, model.seed, model.queue.put, advance
        )
        logits = model.logits(np.asarray(attack.apply(images, delta)))
        found.append(delta)
        correct.append(is_correct(logits, labels).mean())
    return found[int(np.argmin(correct))]


def add_perturbation(path: Path, defense: str, delta: np.ndarray) -> None:
    """Adds the perturbation of a defence to `universal.npz`."""
    write_arrays(path, {**read_arrays(path), defense: delta})


def remove_perturbations(path: Path, defenses: Sequence[str]) -> None:
    """Removes the perturbations of these defences."""
    found = read_arrays(path)
    if found:
        write_arrays(path, {name: each for name, each in found.items() if name not in defenses})
