"""TRADES: accuracy on clean images, and the same answer for attacked ones (Zhang et al. 2019)."""

import jax
import jax.numpy as jnp

from medadv_jax.attacks import Attack, LogitsFn
from medadv_jax.attacks.lanes import (
    Score,
    fingerprint,
    finish_lanes,
    initial_state,
    plan_lanes,
    run_lanes,
)
from medadv_jax.defenses.objectives import kl_divergence, smoothed_cross_entropy

START_NOISE = 0.001  # standard deviation, in pixels of [0, 1]; the paper's algorithm 1


def trades_losses(
    clean: jax.Array, attacked: jax.Array, labels: jax.Array, *, beta: float, smoothing: float = 0.0
) -> jax.Array:
    """Returns -log p(label) of clean logits + β · KL(p(clean) ‖ p(attacked)), (B,) in nats.

    Zhang et al. (2019), eq. 5, with β = 1/λ; β = 6 in their comparison. The gradient flows through
    both logits.

    Args:
      clean, attacked: (B, K) float32 logits.
      labels: (B,) integer.
      beta: β, at least 0.
      smoothing: of the labels.
    """
    return smoothed_cross_entropy(clean, labels, smoothing) + beta * kl_divergence(clean, attacked)


def kl_attack(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    attack: Attack,
    loop: str,
) -> jax.Array:
    """Returns images (B, 1, H, W, C) whose probabilities are far from those of the clean images.

    Ascends KL(p(clean) ‖ p(attacked)) from a Gaussian point beside the image: at the image itself
    the gradient is 0 (Zhang et al. 2019, algorithm 1).

    Args:
      logits_fn: pixels (N, H, W, C) -> logits (N, K), each image alone.
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,); unused.
      key: of the start; the draw for an image depends on the key and its pixels alone.
      attack: radius, norm, step size and number of steps.
      loop: form of the attack loop.
    """
    plan, clean = plan_lanes([attack]), jax.lax.stop_gradient(logits_fn(images))

    def start(image: jax.Array) -> jax.Array:
        noise = jax.random.normal(jax.random.fold_in(key, fingerprint(image)), image.shape)
        return plan.ball.project(image + START_NOISE * noise, image, jnp.float32(attack.epsilon))

    def score(points: jax.Array, labels: jax.Array) -> tuple[jax.Array, Score]:
        losses = kl_divergence(clean, logits_fn(points[:, 0]))[:, None]
        return jnp.sum(losses), Score(jnp.zeros(labels.shape, bool), losses)

    state = initial_state(jax.vmap(start)(images)[:, None], (len(images), 1))
    state = run_lanes(plan, score, state, images[:, None], labels[:, None], loop)
    return finish_lanes(plan, score, state, labels[:, None])[0]
