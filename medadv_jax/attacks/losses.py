"""Losses that attacks raise: one number for each example, from float32 logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns -log p(label): (N, K), (N,) -> (N,)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the best other logit minus the label's: positive where misclassified.

    Carlini & Wagner (2017), objective f6, without its floor. (N, K), (N,) -> (N,).
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    own = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1) - own


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
}
