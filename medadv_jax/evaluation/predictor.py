"""Classifier × threat model × attack → one prediction for each example.

An evaluation leaves records, from which every number is derived; see `predictions.py`.
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
from medadv_jax.distributed import Batch, put_batch
from medadv_jax.evaluation.threat_models import Source, Target, Threat

# (folded variables, pixels (N, H, W, C)) -> (N,), subtracted from an attack's loss
PenaltyFn = Callable[[Variables, jax.Array], jax.Array]


class Predictions(NamedTuple):
    """Answers of one classifier; V = 1 + threats × attacks, column 0 clean, attacks innermost.

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


class Predictor:
    """Compiled programs that attack classifiers and run them; all variables share them.

    Args of the constructor: the classifier, with its purifier if any defence has one; the form of
    the attack loop.
    """

    def __init__(self, classifier: Classifier, loop: str = "fori_loop"):
        self.classifier, self._loop = classifier, loop
        # What attacks differentiate: the same function, with BatchNorm folded into the kernels.
        self.attacked, self.fold = classifier.folded(), classifier.fold
        self._attacks: dict[Any, Any] = {}
        # Programs of their own, the same for every column: whatever is fused into a forward pass
        # changes its rounding, and an image that no attack has changed must get its clean logits
        # bit for bit.
        self._deployed = jax.jit(classifier.logits, static_argnames="gradient")
        self._worst = jax.jit(worst_logits)

    def attack(
        self,
        attacks: Sequence[Attack],
        source: Source,
        batch: Any,
        key: jax.Array,
        penalty: PenaltyFn | None = None,
    ) -> jax.Array:
        """Returns adversarial pixels (A, B, H, W, 3).

        Args:
          attacks: A attacks of one norm, loss and direction.
          source: whose gradients.
          batch: image (B, H, W, 3) uint8 and label (B,), on the devices.
          key: of the random starts.
          penalty: the same object for the same function, or it is compiled again; None: none.
        """
        program = (tuple(attacks), source.gradient, penalty)
        if program not in self._attacks:
            self._attacks[program] = jax.jit(
                functools.partial(self._run, attacks, source.gradient, penalty)
            )
        pixels = to_pixels(batch["image"])
        return self._attacks[program](self.fold(source.variables), pixels, batch["label"], key)

    def _run(
        self,
        attacks: Sequence[Attack],
        gradient: str,
        penalty: PenaltyFn | None,
        variables: Variables,
        *arguments: Any,
    ) -> jax.Array:
        return run_attacks(
            attacks,
            functools.partial(self.attacked.logits, variables, gradient=gradient),
            *arguments,
            loop=self._loop,
            penalty_fn=None if penalty is None else functools.partial(penalty, variables),
        )

    def logits(self, target: Target, pixels: jax.Array) -> jax.Array:
        """Returns the deployed classifier's logits, (B, H, W, 3) in [0, 1] -> (B, K) float32."""
        return self._deployed(target.variables, pixels, gradient=target.deployed)

    def answers(
        self,
        attacks: Sequence[Attack],
        threats: Sequence[Threat],
        target: Target,
        batch: Any,
        key: jax.Array,
    ) -> jax.Array:
        """Returns logits (B, 1 + T·A, K): clean, then each attack of each threat model."""
        columns = [self.logits(target, to_pixels(batch["image"]))]
        for threat in threats if attacks else ():
            found = [self.attack(attacks, source, batch, key) for source in threat.sources]
            columns += [*self.worst_answers(target, found, batch["label"])]
        return jnp.stack(columns, axis=1)

    def worst_answers(
        self, target: Target, found: Sequence[jax.Array], labels: jax.Array
    ) -> jax.Array:
        """Returns logits (A, B, K), the worst of S answers for each image and attack.

        Args:
          target: what answers.
          found: of each of S sources the adversarial pixels (A, B, H, W, 3).
          labels: (B,).
        """
        answers = [jnp.stack([self.logits(target, each) for each in pixels]) for pixels in found]
        return self._worst(jnp.stack(answers), labels)


def worst_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """(S, A, B, K), (B,) -> (A, B, K): of S answers the worst for the defender: a wrong one
    before a right one, among equals the one with the larger loss."""
    every = jnp.broadcast_to(labels, logits.shape[:-1])
    wrong, loss = jnp.argmax(logits, axis=-1) != every, cross_entropy(logits, every)
    loss = jnp.where(wrong == wrong.any(axis=0, keepdims=True), loss, -jnp.inf)
    return jnp.take_along_axis(logits, jnp.argmax(loss, axis=0)[None, ..., None], axis=0)[0]


def predict_all(
    predictor: Predictor,
    attacks: Sequence[Attack],
    threats: Sequence[Threat],
    target: Target,
    batches: Iterable[Batch],
    mesh: Mesh,
    seed: int,
    advance: Callable[[int], None] = lambda images: None,
) -> Predictions:
    """Returns the predictions on all examples of `batches` that are not padding, in their order.

    Args:
      predictor: of the classifiers.
      attacks: A attacks.
      threats: T threat models.
      target: what answers.
      batches: on the host, of one shape.
      mesh: the devices.
      seed: of the random starts.
      advance: told the number of images done.
    """
    key = jax.random.key(seed)
    indices, labels, logits = [], [], []
    for batch in batches:
        real = np.asarray(batch["mask"]) > 0
        answers = predictor.answers(attacks, threats, target, put_batch(mesh, batch), key)
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
