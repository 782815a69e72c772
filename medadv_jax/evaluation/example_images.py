"""A few test images under attack, kept as arrays for the report: `pictures.npz`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from medadv_jax.attacks import Attack
from medadv_jax.classifier import Classifier, to_pixels
from medadv_jax.data.splits import Example
from medadv_jax.evaluation.predictor import Predictor, scores
from medadv_jax.evaluation.threat_models import Source, Target

PER_CLASS = 3


def choose(
    examples: Sequence[Example], test: Sequence[int], num_classes: int = 2, most: int = 32
) -> list[int]:
    """Returns the first test images of each class, whatever the results.

    `PER_CLASS` of each, or fewer so that there are at most `most`.
    """
    each, chosen = max(1, min(PER_CLASS, most // num_classes)), []
    for label in range(num_classes):
        chosen += [i for i in test if examples[i].label == label][:each]
    return chosen[:most]


def take(
    predictor: Predictor[Classifier],
    attacks: Sequence[Attack],
    shown: Attack,
    targets: Mapping[str, Target],
    batch: Any,
    key: jax.Array,
    advance: Callable[[int], None] = lambda classifiers: None,
) -> dict[str, np.ndarray]:
    """Attacks each deployed classifier, and keeps images and scores.

    Args:
      predictor: of the classifiers.
      attacks: those of the evaluation: their program is compiled already.
      shown: that whose images are kept.
      targets: name of a defence -> its classifier.
      batch: image (B, H, W, 3) uint8, label and mask (B,), on the devices.
      key: of the random starts.
      advance: told the number of classifiers done.

    Returns:
      `images` (N, H, W, 3) float32 in [0, 1], `label` (N,), `attack` (), `epsilon` (); for each
      defence `<defense>/adversarial` (N, H, W, 3) float32, `<defense>/score_clean` and
      `<defense>/score_adversarial`, see `predictor.scores`, and with a purifier
      `<defense>/purified`, the purified adversarial image.
    """
    number = attacks.index(shown)
    real = np.asarray(batch["mask"]) > 0
    pixels = to_pixels(batch["image"])
    arrays = {"images": np.asarray(pixels)[real], "label": np.asarray(batch["label"])[real]}
    arrays |= {"attack": np.array(shown.name), "epsilon": np.array(float(shown.epsilon))}
    for name, target in targets.items():
        source = Source(target.deployed, target.variables)
        adversarial = predictor.attack(attacks, source, batch, key)[number]
        arrays[f"{name}/adversarial"] = np.asarray(adversarial)[real]
        for kind, images in (("clean", pixels), ("adversarial", adversarial)):
            logits = np.asarray(predictor.logits(target, images))
            arrays[f"{name}/score_{kind}"] = scores(logits)[real]
        if target.deployed == "full":
            purified = jax.jit(predictor.classifier.purify)(target.variables, adversarial)
            arrays[f"{name}/purified"] = np.asarray(purified)[real]
        advance(1)
    return arrays
