"""A mislearned model: trained on attacked images under wrong labels. A condition, no defence.

The harm that Fig. 1 of the paper draws: attacked images get into the training data, with the class
that the attack made of them. Beside clean images of right labels, the network learns attacked ones
under the label y + 1, and under class 0 for the last.
"""

import jax
import jax.numpy as jnp

from medadv_jax.classifier import Classifier, Variables
from medadv_jax.defenses.objectives import (
    Batch,
    Examples,
    Loss,
    accuracies,
    column_logits,
    smoothed_cross_entropy,
)


def mislearned_loss(
    classifier: Classifier,
    variables: Variables,
    examples: Examples,
    batch: Batch,
    key: jax.Array,
    *,
    smoothing: float = 0.0,
) -> Loss:
    """Returns the weighted cross-entropy with wrong labels for attacked images.

    Arguments and metrics: `classification_loss`; accuracies are those of the right labels.
    """
    columns = examples.images.shape[1]
    logits, batch_stats = column_logits(classifier, variables, examples.images, key, "none")
    labels = taught_labels(batch.labels, columns, logits.shape[-1])
    losses = smoothed_cross_entropy(logits, labels.ravel(), smoothing)
    metrics = accuracies(logits, columns, batch)
    return Loss(jnp.vdot(examples.weights.ravel(), losses), metrics, batch_stats)


def taught_labels(labels: jax.Array, columns: int, num_classes: int) -> jax.Array:
    """Returns the labels (B, V) of a batch in columns: right in column 0, y + 1 in the others."""
    wrong = jnp.broadcast_to(((labels + 1) % num_classes)[:, None], (len(labels), columns - 1))
    return jnp.concatenate([labels[:, None], wrong], axis=1)
