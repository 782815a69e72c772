"""What a training step minimises: an `Objective` makes examples of a batch, and has a loss on them.

objective = Objective(make_examples, classification_loss)
examples = objective.make_examples(logits_fn, images, labels, mask, key)
loss = objective.loss(classifier, variables, examples, batch, dropout_key)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medadv_jax.attacks import LogitsFn
from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.classifier import Classifier, Variables

Metrics = dict[str, jax.Array]  # of a batch; () float32 each


class Batch(NamedTuple):
    """A batch inside the compiled step.

    Attributes:
      images: (B, H, W, 3) float32 in [0, 1], augmented.
      labels: (B,) int32.
      mask: (B,) float32, 0 for examples that do not count.
    """

    images: jax.Array
    labels: jax.Array
    mask: jax.Array


class Examples(NamedTuple):
    """A batch in columns: column 0 is the clean image, the others its adversarial versions.

    Attributes:
      images: (B, V, H, W, C) float32 in [0, 1].
      weights: (B, V) float32, summing to 1; the loss is the weighted sum of all losses.
    """

    images: jax.Array
    weights: jax.Array


# (logits_fn, images, labels, mask, key) -> the examples to train on
ExamplesFn = Callable[[LogitsFn, jax.Array, jax.Array, jax.Array, jax.Array], Examples]


class Loss(NamedTuple):
    """The result of a loss function on a batch.

    Attributes:
      value: () float32, differentiated.
      metrics: for the training curves.
      batch_stats: the network's running statistics after the step.
    """

    value: jax.Array
    metrics: Metrics
    batch_stats: Any


def weighted_sum(weights: jax.Array, losses: jax.Array) -> jax.Array:
    """Returns the sum of weights times losses, of one shape; in float32 on every backend."""
    return jnp.vdot(weights, losses, precision=jax.lax.Precision.HIGHEST)


class Replay(NamedTuple):
    """How a step uses a batch several times; see `free.py`.

    Attributes:
      times: updates of the parameters for each batch.
      move: (points (B, V, H, W, C), gradient of the loss, images (B, H, W, C)) -> the next points.
    """

    times: int
    move: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Objective(NamedTuple):
    """How a step makes its examples, and what it minimises.

    Attributes:
      make_examples: an `ExamplesFn`; no gradient flows through it.
      loss: (classifier, variables, examples, batch, key) -> Loss; `key` is dropout's.
      gradient: which logits the examples are made with; see `Classifier.logits`.
      weight_perturbation: γ of `weight_perturbation.py`; 0: none.
      replay: how a batch is used several times; None: once.
      passes: gradient passes of the network for each training image, attack and training.
    """

    make_examples: ExamplesFn
    loss: Callable[[Classifier, Variables, Examples, Batch, jax.Array], Loss]
    gradient: str = "full"
    weight_perturbation: float = 0.0
    replay: Replay | None = None
    passes: float = 1.0


def clean_examples(images: jax.Array, mask: jax.Array) -> Examples:
    """Returns images (B, H, W, C) and mask (B,) as examples of one column, without an attack."""
    return Examples(images[:, None], (mask / jnp.maximum(jnp.sum(mask), 1.0))[:, None])


# (labels (B,), V columns, K classes) -> labels (B, V)
TeachFn = Callable[[jax.Array, int, int], jax.Array]


def classification_loss(
    classifier: Classifier,
    variables: Variables,
    examples: Examples,
    batch: Batch,
    key: jax.Array,
    *,
    smoothing: float = 0.0,
    dual_norm: str = "none",
    clean: bool = True,
    teach: TeachFn | None = None,
) -> Loss:
    """Returns the weighted cross-entropy of the deployed classifier in train mode.

    The metrics are accuracy, on the clean images (column 0), and, if there are other columns,
    adversarial_accuracy, the mean over these.

    Args:
      classifier: the one to train.
      variables: its variables.
      examples: images and weights.
      batch: labels and mask.
      key: dropout's.
      smoothing: see `smoothed_cross_entropy`.
      dual_norm: see `column_logits`.
      clean: whether column 0 is the clean images; else all columns are attacked ones.
      teach: labels that the loss has in place of the right ones; the metrics keep these.
    """
    columns = examples.images.shape[1]
    logits, batch_stats = column_logits(classifier, variables, examples.images, key, dual_norm)
    labels = jnp.repeat(batch.labels, columns)
    if teach is not None:
        labels = teach(batch.labels, columns, logits.shape[-1]).ravel()
    losses = smoothed_cross_entropy(logits, labels, smoothing)
    metrics = accuracies(logits, columns, batch, clean)
    return Loss(weighted_sum(examples.weights.ravel(), losses), metrics, batch_stats)


# (clean logits (B, K), attacked logits (B, K), labels (B,)) -> losses (B,)
PairLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def pair_loss(
    classifier: Classifier,
    variables: Variables,
    examples: Examples,
    batch: Batch,
    key: jax.Array,
    *,
    losses: PairLoss,
    dual_norm: str = "none",
) -> Loss:
    """Returns the weighted loss of pairs: a clean image, column 0, and an attacked one, column 1.

    A pair's weight is the sum of its columns' weights. The other arguments, and the metrics, are
    those of `classification_loss`.
    """
    logits, batch_stats = column_logits(classifier, variables, examples.images, key, dual_norm)
    pairs = logits.reshape(-1, 2, logits.shape[-1])
    values = losses(pairs[:, 0], pairs[:, 1], batch.labels)
    value = weighted_sum(examples.weights.sum(axis=1), values)
    return Loss(value, accuracies(logits, 2, batch), batch_stats)


def column_logits(
    classifier: Classifier, variables: Variables, images: jax.Array, key: jax.Array, dual_norm: str
) -> tuple[jax.Array, Any]:
    """Returns logits in train mode, (B, V, H, W, C) -> (B·V, K), and the updated statistics.

    Args:
      classifier: the one to train.
      variables: its variables.
      images: the columns.
      key: dropout's.
      dual_norm: "none": BatchNorm normalises clean and attacked images together. "attacked" or
        "clean": by batch statistics of their own (Xie et al. 2020, section 4 and algorithm 1; on
        radiographs Han et al. 2021), and the running statistics are those of the named ones, which
        are deployed and attacked. The scales and biases of BatchNorm are shared, unlike in these
        papers.
    """
    flat = images.reshape(-1, *images.shape[2:])
    if dual_norm == "none":
        return classifier.train_logits(variables, flat, key)
    batch, columns = images.shape[:2]
    clean, clean_stats = classifier.train_logits(variables, images[:, 0], key)
    attacked, attacked_stats = classifier.train_logits(
        variables, images[:, 1:].reshape(-1, *images.shape[2:]), jax.random.fold_in(key, 1)
    )
    attacked = attacked.reshape(batch, columns - 1, -1)
    logits = jnp.concatenate([clean[:, None], attacked], axis=1).reshape(batch * columns, -1)
    return logits, clean_stats if dual_norm == "clean" else attacked_stats


def accuracies(logits: jax.Array, columns: int, batch: Batch, clean: bool = True) -> Metrics:
    """Returns the accuracies of logits (B·V, K); names and arguments: `classification_loss`."""
    right = jnp.argmax(logits, axis=-1).reshape(-1, columns) == batch.labels[:, None]
    accuracy = jnp.sum(right * batch.mask[:, None], axis=0) / jnp.maximum(jnp.sum(batch.mask), 1.0)
    if not clean:
        return {"adversarial_accuracy": jnp.mean(accuracy)}
    metrics = {"accuracy": accuracy[0]}
    if columns > 1:
        metrics["adversarial_accuracy"] = jnp.mean(accuracy[1:])
    return metrics


def smoothed_cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Returns the cross-entropy against (1 - smoothing) · one-hot + smoothing / K.

    Label smoothing (Szegedy et al. 2016, section 7). (N, K), (N,) -> (N,).
    """
    losses = cross_entropy(logits, labels)
    if not smoothing:
        return losses
    uniform = -jnp.mean(jax.nn.log_softmax(logits, axis=-1), axis=-1)
    return (1 - smoothing) * losses + smoothing * uniform


def kl_divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """Returns KL(softmax(logits) ‖ softmax(others)) in nats, (..., K), (..., K) -> (...)."""
    log_p, log_q = (jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in (logits, others))
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
