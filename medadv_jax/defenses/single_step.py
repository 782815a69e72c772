"""Adversarial training with attacks of one step: fast, and FGSM of noisy images."""

import jax
import jax.numpy as jnp

from medadv_jax.attacks import Attack, LogitsFn, run_attacks
from medadv_jax.attacks.lanes import random_start
from medadv_jax.attacks.norms import BALLS

FAST_STEP = 1.25  # of fast, over ε
NOISE = 2.0  # radius of the noise of `noisy_fgsm`, over ε


def fast_attack(epsilon: float, norm: str) -> Attack:
    """Returns FGSM from a random point of the ball, with steps of 1.25 ε (Wong et al. 2020,
    algorithm 3)."""
    return Attack("fast", epsilon, FAST_STEP * epsilon, 1, random_start=True, norm=norm)


def noisy_fgsm(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    epsilon: float,
    norm: str,
) -> jax.Array:
    """Returns images (B, 1, H, W, C): uniform noise of radius 2 ε, and from there a step of ε.

    Noise-FGSM (de Jorge et al. 2022, algorithm 1): the result is not projected to the ball of ε, as
    the noise is augmentation, and lies within 3 ε.

    Args:
      logits_fn: pixels (N, H, W, C) -> logits (N, K), each image alone.
      images: (B, H, W, C) float32 in [0, 1].
      labels: (B,) integer.
      key: of the noise; the draw for an image depends on the key and its pixels alone.
      epsilon: ε, in pixels of [0, 1].
      norm: of noise and step.
    """
    ball, radius = BALLS[norm], jnp.float32(NOISE * epsilon)
    noisy = jax.vmap(lambda image: random_start(key, ball, image, radius))(images)
    fgsm = Attack("fgsm", epsilon, epsilon, 1, norm=norm)
    return run_attacks([fgsm], logits_fn, noisy, labels).swapaxes(0, 1)
