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


class Objective(NamedTuple):
    """How a step makes its examples, and what it minimises.

    Attributes:
      make_examples: an `ExamplesFn`; no gradient flows through it.
      loss: (classifier, variables, examples, batch, key) -> Loss; `key` is dropout's.
      gradient: which logits the examples are made with; see `Classifier.logits`.
    """

    make_examples: ExamplesFn
    loss: Callable[[Classifier, Variables, Examples, Batch, jax.Array], Loss]
    gradient: str = "full"


def clean_examples(images: jax.Array, mask: jax.Array) -> Examples:
    """Returns images (B, H, W, C) and mask (B,) as examples of one column, without an attack."""
    return Examples(images[:, None], (mask / jnp.maximum(jnp.sum(mask), 1.0))[:, None])


def classification_loss(
    classifier: Classifier, variables: Variables, examples: Examples, batch: Batch, key: jax.Array
) -> Loss:
    """Returns the weighted cross-entropy of the deployed classifier in train mode.

    The metrics are accuracy, on the clean images (column 0), and, if there are other columns,
    adversarial_accuracy, the mean over these.
    """
    columns = examples.images.shape[1]
    flat = examples.images.reshape(-1, *examples.images.shape[2:])
    logits, batch_stats = classifier.train_logits(variables, flat, key)
    losses = cross_entropy(logits, jnp.repeat(batch.labels, columns))
    right = jnp.argmax(logits, axis=-1).reshape(-1, columns) == batch.labels[:, None]
    accuracy = jnp.sum(right * batch.mask[:, None], axis=0) / jnp.maximum(jnp.sum(batch.mask), 1.0)
    metrics = {"accuracy": accuracy[0]}
    if columns > 1:
        metrics["adversarial_accuracy"] = jnp.mean(accuracy[1:])
    return Loss(jnp.vdot(examples.weights.ravel(), losses), metrics, batch_stats)
