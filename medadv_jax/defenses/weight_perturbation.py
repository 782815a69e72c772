"""Adversarial weight perturbation: the gradient is taken where the weights are worst nearby
(Wu et al. 2020)."""

from typing import Any

import jax
import jax.numpy as jnp

from medadv_jax.attacks.norms import normalize


def perturb_weights(params: Any, gradients: Any, gamma: float) -> Any:
    """Returns the weights w + v after one step uphill, ‖v‖ = γ ‖w‖ in each kernel.

    Wu et al. (2020), section 4: v = γ ‖w‖ g / ‖g‖, from v = 0 with one step. Biases and the
    scales of norms stay, as in the authors' code. A kernel without gradient stays as it is.

    Args:
      params: a tree of arrays.
      gradients: of the loss, a tree of the same form.
      gamma: γ, the relative size; 0.005 to 0.01 in the paper.
    """

    def perturb(weights: jax.Array, gradient: jax.Array) -> jax.Array:
        if weights.ndim < 2:
            return weights
        length = gamma * jnp.linalg.norm(weights.ravel())
        return weights + length * normalize(gradient, jnp.linalg.norm(gradient.ravel()))

    return jax.tree.map(perturb, params, gradients)
