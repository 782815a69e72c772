"""The loss of a network with several labels an image: a sigmoid for each, not one softmax."""

import jax
import jax.numpy as jnp
import optax

from medadv_jax.classifier import Classifier, Variables
from medadv_jax.defenses.objectives import Batch, Examples, Loss, column_logits


def masked_binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> jax.Array:
    """Returns the weighted mean of the binary cross-entropies of all known labels, () float32.

    Args:
      logits: (N, L); an image has label l with probability sigmoid(logit l).
      labels: (N, L) integer: 1 yes, 0 no, -1 unknown, which does not count.
      weights: (N,) of the images; 0 for padding.
    """
    counts = weights[:, None] * (labels >= 0)
    losses = optax.sigmoid_binary_cross_entropy(logits, jnp.maximum(labels, 0))
    total = jnp.sum(counts)
    return jnp.sum(counts * losses) / jnp.where(total > 0, total, 1.0)


def multi_label_loss(
    classifier: Classifier, variables: Variables, examples: Examples, batch: Batch, key: jax.Array
) -> Loss:
    """Returns `masked_binary_cross_entropy` of the clean images in train mode.

    Args:
      classifier: the one to train.
      variables: its variables.
      examples: images of one column, and their weights.
      batch: labels (B, L).
      key: dropout's.
    """
    logits, batch_stats = column_logits(classifier, variables, examples.images, key, "none")
    value = masked_binary_cross_entropy(logits, batch.labels, examples.weights[:, 0])
    return Loss(value, {}, batch_stats)
