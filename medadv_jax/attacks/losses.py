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


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the margin over the gap of first and third logit: scaling logits changes nothing.

    Croce & Hein (2020), eq. 6. (N, K), (N,) -> (N,); ValueError for two classes.
    """
    if logits.shape[-1] < 3:
        raise ValueError("loss='dlr' needs at least 3 classes: with 2, take loss='margin'")
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_margin(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the target's logit minus the label's: (N, K), (N,), (N,) -> (N,)."""
    of_target, of_label = (
        jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]
        for classes in (targets, labels)
    )
    return of_target - of_label


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the margin to the target over a gap of sorted logits (Croce & Hein 2020, eq. 7).

    With two or three classes, where the gap is not defined, the margin to the target itself.
    (N, K), (N,), (N,) -> (N,).
    """
    difference = targeted_margin(logits, labels, targets)
    if logits.shape[-1] < 4:
        return difference
    top = jax.lax.top_k(logits, 4)[0]
    return difference / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
}
