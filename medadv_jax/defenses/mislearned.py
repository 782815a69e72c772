"""A mislearned model: trained on attacked images under wrong labels. A condition, no defence.

The harm that Fig. 1 of the paper draws: attacked images get into the training data, with the class
that the attack made of them. Beside clean images of right labels, the network learns attacked ones
under the label y + 1, and under class 0 for the last.
"""

import jax
import jax.numpy as jnp


def taught_labels(labels: jax.Array, columns: int, num_classes: int) -> jax.Array:
    """Returns the labels (B, V) of a batch in columns: right in column 0, y + 1 in the others; the
    `teach` of `classification_loss`."""
    wrong = jnp.broadcast_to(((labels + 1) % num_classes)[:, None], (len(labels), columns - 1))
    return jnp.concatenate([labels[:, None], wrong], axis=1)
