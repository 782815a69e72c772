"""What an attacker may change: a square patch of the image, one pixel, the same in all channels.

    attack = make_attack("pgd", 0.3, restriction=parse_restriction("0.04"))   # a centred patch

Every attack keeps to it in the same way: the gradient that it sees has no part in directions that
are not allowed, and its projection brings each point back to the allowed ones.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks.norms import BALLS, Ball

MASKS = (
    "none, pixel, or the share of the image that a square patch has, such as 0.04; 0.04@0.3,0.7"
    " moves its centre to 0.3 of the height and 0.7 of the width"
)


class Box(NamedTuple):
    """The pixels of a patch."""

    top: int
    left: int
    height: int
    width: int


class Restriction(NamedTuple):
    """What an attacker may change; the default is everything.

    Attributes:
      share: of the image, that a square patch has; 1: the whole image, 0: one pixel.
      row, column: where its centre is, in shares of height and width.
      grey: whether the change is the same in all channels, so that a grey image stays grey.
    """

    share: float = 1.0
    row: float = 0.5
    column: float = 0.5
    grey: bool = False

    @property
    def suffix(self) -> str:
        """What the names of restricted attacks end with; "" without a restriction."""
        place = "" if self.share == 1 else "_patch" if self.share else "_pixel"
        return ("_grey" if self.grey else "") + place

    def box(self, height: int, width: int) -> Box:
        """Returns the patch in an image of this size; a patch at its edge is moved inside."""
        if self.share == 1:
            return Box(0, 0, height, width)
        side = max(1, min(round(math.sqrt(self.share * height * width)), height, width))
        top, left = (
            min(max(int(at * size - (side - 1) / 2), 0), size - side)
            for at, size in ((self.row, height), (self.column, width))
        )
        return Box(top, left, side, side)

    def direction(self, change: jax.Array) -> jax.Array:
        """Returns the part of a change (…, H, W, C) in allowed directions: its mean over channels,
        if grey, and 0 outside the patch."""
        if self.grey:
            mean = jnp.mean(change, axis=-1, keepdims=True)
            change = jnp.broadcast_to(mean, change.shape)
        return jnp.where(self._mask(change.shape), change, 0.0)

    def point(self, point: jax.Array, image: jax.Array) -> jax.Array:
        """Returns a point (H, W, C) in [0, 1] brought back to what may be changed of the image.

        Outside the patch it is the image, bit for bit. A grey change is cut so that all channels
        stay in [0, 1]. No change gets larger.
        """
        if self == FREE:
            return point
        if self.grey:
            change = jnp.mean(point - image, axis=-1, keepdims=True)
            low = -jnp.min(image, axis=-1, keepdims=True)
            high = 1.0 - jnp.max(image, axis=-1, keepdims=True)
            point = jnp.clip(image + jnp.clip(change, low, high), 0.0, 1.0)
        return jnp.where(self._mask(point.shape), point, image)

    def restrict_gradient(self, points: jax.Array) -> jax.Array:
        """Returns points (…, H, W, C) as they are; a gradient through them has allowed directions
        only."""
        if self == FREE:
            return points

        @jax.custom_jvp
        def same(points: jax.Array) -> jax.Array:
            return points

        same.defjvp(lambda primals, tangents: (primals[0], self.direction(tangents[0])))
        return same(points)

    def _mask(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns (…, H, W, C) bool, true in the patch."""
        inside, (top, left, height, width) = np.zeros(shape[-3:], bool), self.box(*shape[-3:-1])
        inside[top : top + height, left : left + width] = True
        return np.broadcast_to(inside, shape)


FREE = Restriction()


class _RestrictedBall(NamedTuple):
    """A ball, cut with what may be changed."""

    ball: Ball
    restriction: Restriction

    def direction(self, gradient: jax.Array) -> jax.Array:
        """See `Ball`; the gradient has allowed directions only."""
        return self.ball.direction(gradient)

    def project(self, point: jax.Array, image: jax.Array, epsilon: jax.Array) -> jax.Array:
        """See `Ball`."""
        return self.restriction.point(self.ball.project(point, image, epsilon), image)

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns the allowed part of a uniform draw from the unit ball."""
        return self.restriction.direction(self.ball.sample(key, shape))


def make_ball(norm: str, restriction: Restriction = FREE) -> Ball:
    """Returns the ball of a norm, cut with what may be changed."""
    return BALLS[norm] if restriction == FREE else _RestrictedBall(BALLS[norm], restriction)


def parse_restriction(mask: str = "none", grey: bool = False) -> Restriction:
    """Returns what `attack.mask` and `attack.grey` of a config say; ValueError if it is none of
    `MASKS`."""
    if mask == "none":
        return Restriction(grey=grey)
    size, at, place = mask.partition("@")
    try:
        share = 0.0 if size == "pixel" else float(size)
        row, column = map(float, place.split(",")) if at else (0.5, 0.5)
        possible = 0 <= share < 1 and 0 <= row <= 1 and 0 <= column <= 1
    except ValueError:
        possible = False
    if not possible or (not share and size != "pixel"):
        raise ValueError(f"mask={mask!r}: must be {MASKS}")
    return Restriction(share, row, column, grey)
