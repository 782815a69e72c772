"""Classifier × threat model × attack → one prediction for each example.

An evaluation leaves records, from which every number is derived; see `predictions.py`.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medadv_jax.attacks import Attack, run_attacks
from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.classifier import to_pixels
from medadv_jax.distributed import Batch, Share, put_batch
from medadv_jax.evaluation.metrics import worst_attempt
from medadv_jax.evaluation.threat_models import Source, Target, Threat


class Model(Protocol):
    """What a `Predictor` compiles: a `Classifier`, or an `Ensemble` of several."""

    def logits(self, variables: Any, pixels: jax.Array, output: str, /) -> jax.Array:
        """Returns logits, (B, H, W, 3) in [0, 1] -> (B, K) float32.

        `output` names the function: one that is deployed, or a variant of it that attackers
        differentiate; a classifier calls it `gradient`.
        """
        ...

    def folded(self) -> Self:
        """Returns the model that takes the variables of `fold`, for many forward passes."""
        ...

    def fold(self, variables: Any, /) -> Any:
        """Returns the variables for `folded`."""
        ...


M = TypeVar("M", bound=Model)


TargetsFn = Callable[[jax.Array], jax.Array]  # labels (B,) -> classes to reach (B,)
# (folded variables, pixels (N, H, W, C)) -> (N,)
PenaltyScore = Callable[[Any, jax.Array], jax.Array]


class Penalty(NamedTuple):
    """What an attacker keeps low beside fooling the model; subtracted from the attack's loss.

    Attributes:
      score: compiled once for each object.
      weight: of the score, a scalar; all weights share one program.
    """

    score: PenaltyScore
    weight: float | jax.Array


class Predictions(NamedTuple):
    """Logits of one model; V = 1 + threats × attacks, column 0 clean, attacks innermost.

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
        """(n, V) or (n, V, K) float32; see `scores`."""
        return scores(self.logits)


def scores(logits: np.ndarray) -> np.ndarray:
    """Returns what records keep of logits (…, K): the probability of class 1 of two, (…) float32;
    of more classes that of each, (…, K)."""
    probabilities = jax.nn.softmax(jnp.asarray(logits), axis=-1)
    return np.asarray(probabilities[..., 1] if logits.shape[-1] == 2 else probabilities)


class Predictor(Generic[M]):
    """Compiled programs that attack and run a model; all its variables share them.

    Args of the constructor: the model, with its purifier if any defence has one; the form of the
    attack loop; labels (B,) -> the classes that targeted attacks aim at, (B,).
    """

    def __init__(
        self, classifier: M, loop: str = "fori_loop", choose_targets: TargetsFn | None = None
    ):
        self.classifier, self._loop, self.choose_targets = classifier, loop, choose_targets
        # What attacks differentiate: the same function, with BatchNorm folded into the kernels.
        self.attacked = classifier.folded()
        self._folded: tuple[Any, Any] | None = None  # variables, and the same folded
        self._attacks: dict[Any, Any] = {}
        # Programs of their own, the same for every column: whatever is fused into a forward pass
        # changes its rounding, and an image that no attack has changed must get its clean logits
        # bit for bit.
        self._deployed = jax.jit(classifier.logits, static_argnums=2)
        self._worst = jax.jit(worst_logits)

    def fold(self, variables: Any) -> Any:
        """Returns the variables for `attacked`; the same ones as in the last call are kept."""
        if self._folded is None or self._folded[0] is not variables:
            self._folded = variables, self.classifier.fold(variables)
        return self._folded[1]

    def forget(self) -> None:
        """Frees what `fold` keeps."""
        self._folded = None

    def attack(
        self,
        attacks: Sequence[Attack],
        source: Source,
        batch: Any,
        key: jax.Array,
        penalty: Penalty | None = None,
    ) -> jax.Array:
        """Returns adversarial pixels (A, B, H, W, 3).

        Args:
          attacks: A attacks of one norm, loss and direction. Targeted ones aim at the classes of
            `choose_targets`, and leave an image of that class as it is.
          source: whose gradients.
          batch: image (B, H, W, 3) uint8 and label (B,), on the devices.
          key: of the random starts.
          penalty: what the attacker keeps low as well; None: nothing.
        """
        score, weight = penalty or (None, None)
        program = (tuple(attacks), source.gradient, score)
        if program not in self._attacks:
            self._attacks[program] = self._compiled(*program)
        weight = None if weight is None else jnp.float32(weight)
        variables, pixels, labels = (
            self.fold(source.variables),
            to_pixels(batch["image"]),
            batch["label"],
        )
        if not any(getattr(attack, "targeted", False) for attack in attacks):
            return self._attacks[program](variables, weight, pixels, labels, key)
        assert self.choose_targets is not None, "a targeted attack needs targets"
        targets = self.choose_targets(labels)
        found = self._attacks[program](variables, weight, pixels, targets, key)
        return jnp.where((targets == labels)[:, None, None, None], pixels, found)

    def _compiled(
        self, attacks: Sequence[Attack], gradient: str, score: PenaltyScore | None
    ) -> Callable[..., jax.Array]:
        def run(variables: Any, weight: Any, *arguments: Any) -> jax.Array:
            return run_attacks(
                attacks,
                lambda pixels: self.attacked.logits(variables, pixels, gradient),
                *arguments,
                loop=self._loop,
                penalty_fn=score and functools.partial(_weighted, score, weight, variables),
            )

        return jax.jit(run)

    def logits(self, target: Target, pixels: jax.Array) -> jax.Array:
        """Returns the deployed model's logits, (B, H, W, 3) in [0, 1] -> (B, K) float32."""
        return self._deployed(target.variables, pixels, target.deployed)

    def evaluate(
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
            columns += [*self.worst_logits(target, found, batch["label"])]
        return jnp.stack(columns, axis=1)

    def worst_logits(
        self, target: Target, adversarial: Sequence[jax.Array], labels: jax.Array
    ) -> jax.Array:
        """Returns logits (A, B, K): for each image and attack those of the most harmful source.

        `adversarial`: of each of S sources the pixels (A, B, H, W, 3); labels (B,).
        """
        logits = [
            jnp.stack([self.logits(target, each) for each in pixels]) for pixels in adversarial
        ]
        return self._worst(jnp.stack(logits), labels)


def _weighted(score: PenaltyScore, weight: Any, variables: Any, pixels: jax.Array) -> jax.Array:
    return weight * score(variables, pixels)


def worst_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the logits of the worst of S attempts, (S, A, B, K), (B,) -> (A, B, K)."""
    every = jnp.broadcast_to(labels, logits.shape[:-1])
    wrong, loss = jnp.argmax(logits, axis=-1) != every, cross_entropy(logits, every)
    chosen = worst_attempt(wrong, loss)[None, ..., None]
    return jnp.take_along_axis(logits, chosen, axis=0)[0]


def predict_all(
    predictor: Predictor,
    attacks: Sequence[Attack],
    threats: Sequence[Threat],
    target: Target,
    batches: Iterable[Batch],
    mesh: Mesh,
    seed: int,
    advance: Callable[[int], None] = lambda images: None,
    share: Share | None = None,
) -> Predictions:
    """Returns the predictions on all examples of `batches` that are not padding, in their order.

    Args:
      predictor: of the model.
      attacks: A attacks.
      threats: T threat models.
      target: the deployed model.
      batches: on the host, of one shape.
      mesh: the devices.
      seed: of the random starts.
      advance: called with the number of images done.
      share: whose rows the batches hold; the predictions are then of all processes. None: all.
    """
    key, gather = jax.random.key(seed), share.gather if share else np.asarray
    indices, labels, logits = [], [], []
    for batch in batches:
        real = np.asarray(batch["mask"]) > 0
        found = predictor.evaluate(attacks, threats, target, put_batch(mesh, batch), key)
        indices.append(np.asarray(batch["index"])[real])
        labels.append(np.asarray(batch["label"])[real])
        logits.append(jax.device_get(found)[real])
        advance(int(real.sum()))
    predictor.forget()  # training goes on after a validation, and needs the memory
    return Predictions(*(gather(np.concatenate(each)) for each in (indices, labels, logits)))


def accuracy_and_loss(predictions: Predictions) -> dict[str, float]:
    """Returns accuracy and mean cross-entropy, for each example the worst of its columns."""
    labels, columns = predictions.label[:, None], predictions.logits.shape[1]
    flat = predictions.logits.reshape(-1, predictions.logits.shape[-1])
    losses = np.asarray(cross_entropy(jnp.asarray(flat), jnp.repeat(labels.ravel(), columns)))
    wrong, losses = predictions.predicted != labels, losses.reshape(-1, columns)
    worst = worst_attempt(wrong.T, losses.T)[:, None]
    wrong, losses = (np.take_along_axis(each, worst, axis=1) for each in (wrong, losses))
    return {"accuracy": float((~wrong).mean()), "loss": float(losses.mean())}
