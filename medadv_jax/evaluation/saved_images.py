"""Attacked test images of a run, for others to look at and to try: `attacked_images/<defense>/`.

For each attack of the adaptive attacker `<attack>.npy`, (n, H, W, 3) float32 in [0, 1], the images
that the classifier was given, and `<attack>/<number>_<example>.png`, the same rounded to 8 bits.
`images.csv` says what the classifier makes of both.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from medadv_jax.attacks import Attack
from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.evaluation.metrics import worst_attempt
from medadv_jax.evaluation.model_under_test import ModelUnderTest, is_correct
from medadv_jax.files import atomic_folder, file_name

ATTACKED_IMAGES = "attacked_images"
COLUMNS = ("images", "example", "png", "label", "predicted", "predicted_png")


def worst_images(
    model: ModelUnderTest,
    attacks: Sequence[Attack],
    searching: Sequence[Any],
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, np.ndarray]:
    """Returns name -> images (n, H, W, 3): the clean ones, and those of each attack.

    Args:
      model: the deployed classifier and n test images.
      attacks: the first-order attacks of the evaluation; of several gradients the worst counts for
        each image, as in its records.
      searching: its other attacks.
      advance: told the number of images of each attack.
    """
    found = {"clean": model.images}
    by_source = [model.evaluated(attacks, source) for source in model.sources] if attacks else []
    for number, attack in enumerate(attacks):
        found[attack.name] = _worst(model, np.stack([each[number] for each in by_source]))
        advance(len(model))
    for attack in searching:
        found[attack.name] = model.search(attack, advance=advance).pixels
    return found


def _worst(model: ModelUnderTest, attempts: np.ndarray) -> np.ndarray:
    """Returns, of attempts (S, n, H, W, 3), the worst one for the model on each image."""
    logits = np.stack([model.logits(each) for each in attempts])
    wrong = np.stack([~is_correct(each, model.labels) for each in logits])
    labels = jnp.asarray(model.labels)
    loss = np.stack([cross_entropy(jnp.asarray(each), labels) for each in logits])
    return attempts[worst_attempt(wrong, loss), np.arange(len(model))]


def write_images(folder: Path, model: ModelUnderTest, found: Mapping[str, np.ndarray]) -> None:
    """Writes the folder of a defence; `found`: of `worst_images`."""
    rows: list[Sequence[Any]] = [COLUMNS]
    with atomic_folder(folder) as beside:
        for name, pixels in found.items():
            np.save(beside / f"{name}.npy", pixels)
            (beside / name).mkdir()
            rounded = np.round(pixels * 255).astype(np.uint8)
            predicted = model.logits(pixels).argmax(axis=1)
            of_png = model.logits((rounded / 255).astype(np.float32)).argmax(axis=1)
            for i, example in enumerate(model.examples):
                png = f"{name}/{i:04d}_{file_name(example.id)}.png"
                Image.fromarray(rounded[i]).save(beside / png)
                rows.append((name, example.id, png, example.label, predicted[i], of_png[i]))
        _write_csv(beside / "images.csv", rows)


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
