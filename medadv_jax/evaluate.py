"""Classifier × attack → one prediction for each example.

An evaluation leaves records, from which every number is derived; see `results.py`.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medadv_jax.attacks import Attack, run_attacks
from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.classifier import Classifier, Variables, to_pixels
from medadv_jax.config import Config
from medadv_jax.defenses import attack_from_config
from medadv_jax.train_step import Batch, put_batch


class Predictions(NamedTuple):
    """Answers of one classifier; V = 1 + the number of attacks, column 0 clean.

    Attributes:
      index: (n,) int32, positions in the data set.
      label: (n,) int32.
      logits: (n, V, K) float32.
    """

    index: np.ndarray
    label: np.ndarray
    logits: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(n, V) int: the class with the largest logit."""
        return self.logits.argmax(axis=-1)

    @property
    def score(self) -> np.ndarray:
        """(n, V) float32: the softmax probability of class 1."""
        return np.asarray(jax.nn.softmax(self.logits, axis=-1)[..., 1])


def evaluation_attacks(config: Config) -> list[Attack]:
    """Returns the attacks of `config.eval`, in its order."""
    return [_evaluation_attack(config, name) for name in config.eval.attacks.split(",")]


def validation_attacks(config: Config) -> list[Attack]:
    """Returns the attack on whose validation accuracy robust checkpoints are chosen."""
    name = config.eval.validation_attack
    return [attack_from_config(config, name, config.train.num_steps)]


def _evaluation_attack(config: Config, name: str) -> Attack:
    settings = config.eval
    options: dict[str, Any] = {}
    # FGSM is one step, and its result is where that step ends: as in its paper.
    if name != "fgsm":
        options["keep_best"] = settings.keep_best
    if name == "pgd":
        options["num_restarts"] = settings.restarts
    return attack_from_config(config, name, settings.num_steps, **options)


class Predictor:
    """Compiled programs that attack a classifier and that run it; all its variables share them."""

    def __init__(self, classifier: Classifier, loop: str):
        self._classifier, self._loop = classifier, loop
        self._attacks: dict[tuple[Attack, ...], Any] = {}
        # A program of its own, the same for every column: whatever is fused into a forward pass
        # changes its rounding, and an image that no attack has changed must get its clean logits
        # bit for bit.
        self._deployed = jax.jit(classifier.logits)

    def logits(
        self, attacks: Sequence[Attack], variables: Variables, batch: Any, key: jax.Array
    ) -> jax.Array:
        """Returns logits (B, 1 + A, K) float32: column 0 of the clean images, column a of attack a.

        Args:
          attacks: A attacks of one norm, loss and direction.
          variables: of the classifier.
          batch: image (B, H, W, 3) uint8 and label (B,), on the devices.
          key: of the random starts.
        """
        columns = self._attack_fn(tuple(attacks))(variables, batch, key)
        return jnp.stack([self._deployed(variables, pixels) for pixels in columns], axis=1)

    def _attack_fn(self, attacks: tuple[Attack, ...]) -> Callable[..., list[jax.Array]]:
        """Returns the compiled (variables, batch, key) -> clean and adversarial pixels."""
        if attacks not in self._attacks:
            self._attacks[attacks] = jax.jit(functools.partial(self._run, attacks))
        return self._attacks[attacks]

    def _run(
        self, attacks: Sequence[Attack], variables: Variables, batch: Any, key: jax.Array
    ) -> list[jax.Array]:
        pixels, labels = to_pixels(batch["image"]), batch["label"]
        if not attacks:
            return [pixels]
        logits_fn = self._classifier.logits_fn(variables)
        return [pixels, *run_attacks(attacks, logits_fn, pixels, labels, key, loop=self._loop)]


def predict_all(
    predictor: Predictor,
    attacks: Sequence[Attack],
    variables: Variables,
    batches: Iterable[Batch],
    mesh: Mesh,
    seed: int,
    advance: Callable[[int], None] = lambda images: None,
) -> Predictions:
    """Returns the predictions on all examples of `batches` that are not padding, in their order.

    Args:
      predictor: of the classifier.
      attacks: what it is attacked by.
      variables: of the classifier.
      batches: on the host, of one shape.
      mesh: the devices.
      seed: of the random starts.
      advance: told the number of images done.
    """
    key = jax.random.key(seed)
    indices, labels, logits = [], [], []
    for batch in batches:
        real = np.asarray(batch["mask"]) > 0
        answers = predictor.logits(attacks, variables, put_batch(mesh, batch), key)
        indices.append(np.asarray(batch["index"])[real])
        labels.append(np.asarray(batch["label"])[real])
        logits.append(jax.device_get(answers)[real])
        advance(int(real.sum()))
    return Predictions(np.concatenate(indices), np.concatenate(labels), np.concatenate(logits))


def accuracy_and_loss(predictions: Predictions) -> dict[str, float]:
    """Returns accuracy and mean cross-entropy in the worst column, for each example."""
    labels = predictions.label[:, None]
    right = (predictions.predicted == labels).all(axis=1)
    columns = predictions.logits.shape[1]
    flat = predictions.logits.reshape(-1, predictions.logits.shape[-1])
    losses = np.asarray(cross_entropy(jnp.asarray(flat), jnp.repeat(labels.ravel(), columns)))
    worst = losses.reshape(-1, columns).max(axis=1)
    return {"accuracy": float(right.mean()), "loss": float(worst.mean())}
