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

      Of A attacks, on the first image of each of K classes: `attacks` (A,), `first` (K,) positions
      among the images; for each defence `<defense>/adaptive` (A, K, H, W, 3) float16 and
      `<defense>/adaptive_score` (A, K), or (A, K, K) of more than two classes; with a purifier also
      `<defense>/oblivious`, `<defense>/oblivious_score`, and `<defense>/reconstructed`
      (K, H, W, 3), the purified clean images.
    """
    number = attacks.index(shown)
    real = np.asarray(batch["mask"]) > 0
    pixels, label = to_pixels(batch["image"]), np.asarray(batch["label"])[real]
    first = np.unique(label, return_index=True)[1]
    purify = jax.jit(predictor.classifier.purify)
    arrays = {"images": np.asarray(pixels)[real], "label": label, "first": first}
    arrays |= {"attack": np.array(shown.name), "epsilon": np.array(float(shown.epsilon))}
    arrays["attacks"] = np.array([attack.name for attack in attacks])
    for name, target in targets.items():
        purified = target.deployed == "full"
        clean = np.asarray(predictor.logits(target, pixels))
        arrays[f"{name}/score_clean"] = scores(clean)[real]
        for threat in ("oblivious", "adaptive") if purified else ("adaptive",):
            gradient = "bare" if threat == "oblivious" else target.deployed
            found = predictor.attack(attacks, Source(gradient, target.variables), batch, key)
            score = scores(np.stack([predictor.logits(target, each) for each in found]))[:, real]
            arrays[f"{name}/{threat}_score"] = score[:, first]
            arrays[f"{name}/{threat}"] = np.asarray(found)[:, real][:, first].astype(np.float16)
        # The last is the adaptive attacker's.
        arrays[f"{name}/score_adversarial"] = score[number]
        arrays[f"{name}/adversarial"] = np.asarray(found[number])[real]
        if purified:
            arrays[f"{name}/purified"] = np.asarray(purify(target.variables, found[number]))[real]
            reconstructed = np.asarray(purify(target.variables, pixels))[real]
            arrays[f"{name}/reconstructed"] = reconstructed[first]
        advance(1)
    return arrays
