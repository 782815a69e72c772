"""What a defence trains on in one step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Examples(NamedTuple):
    """A batch in columns: column 0 is the clean image, the others its adversarial versions.

    Attributes:
      images: (B, V, H, W, C) float32 in [0, 1].
      weights: (B, V) float32, summing to 1: the loss is their product with the losses, summed.
    """

    images: jax.Array
    weights: jax.Array


def clean_examples(images: jax.Array, mask: jax.Array) -> Examples:
    """Returns the batch as it is, (B, H, W, C) and (B,) -> one column."""
    return Examples(images[:, None], (mask / jnp.maximum(jnp.sum(mask), 1.0))[:, None])
