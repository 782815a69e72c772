"""Norm balls: direction of a step, projection, random point.

Everything here treats one image (H, W, C); the loop maps it over examples and lanes.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp


def normalize(x: jax.Array, norm: jax.Array) -> jax.Array:
    """Returns `x / norm`, and 0 where the norm is 0, so that a zero gradient gives no NaN."""
    return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1.0), 0.0)


def norm_of(x: jax.Array, norm: str) -> jax.Array:
    """Returns the "l1", "l2" or "linf" norm of one image's change."""
    return jnp.linalg.norm(x.ravel(), {"l1": 1, "l2": 2, "linf": jnp.inf}[norm])


def l1_normalize(gradient: jax.Array) -> jax.Array:
    """Divides a gradient by its L1 norm (Dong et al. 2018, eq. 6)."""
    # Divided by the largest entry first: a sum of tiny or huge entries would leave float32's range.
    gradient = normalize(gradient, jnp.max(jnp.abs(gradient)))
    return normalize(gradient, jnp.sum(jnp.abs(gradient)))


class Ball(Protocol):
    """The geometry of a norm; `images` and points are (H, W, C) float32 in [0, 1]."""

    def direction(self, gradient: jax.Array) -> jax.Array:
        """Returns the unit step that raises a linear function with this gradient the most."""
        ...

    def project(self, point: jax.Array, image: jax.Array, epsilon: jax.Array) -> jax.Array:
        """Returns a point of the ball around `image`, cut with [0, 1]."""
        ...

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns a uniform draw from the unit ball."""
        ...


class LInf(NamedTuple):
    """Largest change of any pixel."""

    def direction(self, gradient: jax.Array) -> jax.Array:
        """Returns the sign; 0 where the gradient is 0 or not a number."""
        return (gradient > 0).astype(gradient.dtype) - (gradient < 0).astype(gradient.dtype)

    def project(self, point: jax.Array, image: jax.Array, epsilon: jax.Array) -> jax.Array:
        """Returns the nearest point of the ball and of [0, 1]."""
        return jnp.clip(point, jnp.maximum(image - epsilon, 0.0), jnp.minimum(image + epsilon, 1.0))

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns (H, W, C), uniform in [-1, 1]."""
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


class L2(NamedTuple):
    """Euclidean length of the change."""

    def direction(self, gradient: jax.Array) -> jax.Array:
        """Returns the gradient at length 1; 0 where it is 0."""
        return normalize(gradient, jnp.linalg.norm(gradient.ravel()))

    def project(self, point: jax.Array, image: jax.Array, epsilon: jax.Array) -> jax.Array:
        """Returns the point scaled back to the ball, then clipped: clipping moves it inwards."""
        delta = point - image
        length = jnp.linalg.norm(delta.ravel())
        delta = jnp.where(length > epsilon, normalize(delta, length) * epsilon, delta)
        return jnp.clip(image + delta, 0.0, 1.0)

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns a Gaussian direction at a radius whose power `size` is uniform."""
        direction_key, radius_key = jax.random.split(key)
        direction = self.direction(jax.random.normal(direction_key, shape))
        return direction * jax.random.uniform(radius_key) ** (1.0 / direction.size)


BALLS: dict[str, Ball] = {"linf": LInf(), "l2": L2()}
