"""Free adversarial training: one backward pass moves both the weights and the images
(Shafahi et al. 2019)."""

import jax
import jax.numpy as jnp

from medadv_jax.attacks import LogitsFn
from medadv_jax.attacks.lanes import random_start
from medadv_jax.attacks.norms import BALLS


def random_points(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    epsilon: float,
    norm: str,
) -> jax.Array:
    """Returns random points of the balls around images, (B, H, W, C) -> (B, 1, H, W, C).

    The start of a batch's replays. Shafahi et al. start from the perturbation of the batch before;
    of other images, it is a random start too, and here it needs no place in the checkpoint.
    """
    del logits_fn, labels
    ball, radius = BALLS[norm], jnp.float32(epsilon)
    return jax.vmap(lambda image: random_start(key, ball, image, radius))(images)[:, None]


def move_points(
    points: jax.Array, gradient: jax.Array, images: jax.Array, *, epsilon: float, norm: str
) -> jax.Array:
    """Returns the points of the next replay: a step of ε uphill, projected to the ball.

    Shafahi et al. (2019), algorithm 1.

    Args:
      points: (B, 1, H, W, C) float32 in [0, 1].
      gradient: of the training loss at `points`.
      images: (B, H, W, C), the centres.
      epsilon: ε, in pixels of [0, 1].
      norm: of the ball.
    """
    ball = BALLS[norm]

    def move(point: jax.Array, gradient: jax.Array, image: jax.Array) -> jax.Array:
        moved = point + epsilon * ball.direction(gradient)
        return ball.project(moved, image, jnp.float32(epsilon))

    return jax.vmap(move)(points[:, 0], gradient[:, 0], images)[:, None]
