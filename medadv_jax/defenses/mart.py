"""MART: misclassified images count more (Wang et al. 2020)."""

import jax
import jax.numpy as jnp

from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.defenses.objectives import kl_divergence


def mart_losses(
    clean: jax.Array, attacked: jax.Array, labels: jax.Array, *, beta: float
) -> jax.Array:
    """Returns BCE(attacked) + β · KL(p(clean) ‖ p(attacked)) · (1 - p(label | clean)), (B,).

    Wang et al. (2020), eq. 11, where β is called λ (5 in their comparison). The gradient flows
    through both logits.

    Args:
      clean, attacked: (B, K) float32 logits.
      labels: (B,) integer.
      beta: λ, at least 0.
    """
    missed = -jnp.expm1(-cross_entropy(clean, labels))
    return boosted_cross_entropy(attacked, labels) + beta * kl_divergence(clean, attacked) * missed


def boosted_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns -log p(label) - log(1 - p(k)), k the most probable other class; (B, K), (B,) -> (B,).

    Wang et al. (2020), eq. 8.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    other = jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    is_other = jax.nn.one_hot(other, logits.shape[-1], dtype=bool)
    # log(1 - p) as a sum over the remaining classes: exact where p is near 1.
    rest = jax.nn.logsumexp(jnp.where(is_other, -jnp.inf, logits), axis=-1)
    return cross_entropy(logits, labels) + jax.nn.logsumexp(logits, axis=-1) - rest
