"""The Square Attack: random squares, kept where they lower the margin; needs no gradient.

Andriushchenko et al. (2020). Where it breaks images that gradient attacks leave, those gradients
are masked.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks import losses
from medadv_jax.attacks.lanes import choose_rows
from medadv_jax.attacks.norms import norm_of, normalize
from medadv_jax.attacks.restriction import Box
from medadv_jax.attacks.spec import LogitsFn
from medadv_jax.attacks.stepwise import Examples, StepwiseAttack

SHARE = 0.8  # of an image that the first squares cover: p of the paper
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries; then p halves


class SquareState(NamedTuple):
    """Where the attack on an image stands."""

    best: jax.Array  # (H, W, C) of the lowest margin
    margin: jax.Array  # () own logit minus the best other; infinite before the first query
    key: jax.Array  # of this image's draws
    success: jax.Array  # () bool
    done: jax.Array  # () bool
    iteration: jax.Array  # () int32, queries asked


@dataclasses.dataclass(frozen=True)
class Square(StepwiseAttack):
    """The Square Attack on the margin, L∞ and L2; `num_steps` is the number of queries.

    Andriushchenko et al. (2020), algorithms 1 to 3. Untargeted.
    """

    num_steps: int = 5000

    def start(self, example: Examples, key: jax.Array) -> SquareState:
        """Returns the state at random stripes (L∞) or tiles (L2)."""
        image = example.image
        box, channels = self._room(image)
        if self.norm == "linf":
            signs = _signs(jax.random.fold_in(key, 0), (1, box.width, channels))
            change = self.epsilon * _placed(signs, box, image.shape)
        else:
            tiles = _tiles(jax.random.fold_in(key, 0), box.height, box.width, channels)
            change = self._scaled(_placed(tiles, box, image.shape))
        no = jnp.zeros((), bool)
        first = self.restriction.point(jnp.clip(image + change, 0.0, 1.0), image)
        return SquareState(first, jnp.float32(jnp.inf), key, no, no, jnp.int32(0))

    def step(self, logits_fn: LogitsFn, state: SquareState, examples: Examples) -> SquareState:
        """Asks for one changed square, and keeps it where the margin falls."""
        tried = jax.vmap(self._propose)(state, examples.image)
        logits = logits_fn(tried).astype(jnp.float32)
        found = -losses.margin(logits, examples.label)
        wrong = jnp.argmax(logits, axis=-1) != examples.label
        better = (found < state.margin) | wrong
        return state._replace(
            best=choose_rows(better, tried, state.best),
            margin=jnp.where(better, found, state.margin),
            success=wrong,
            done=wrong | (state.iteration + 1 >= self.num_steps),
            iteration=state.iteration + 1,
        )

    def _propose(self, state: SquareState, image: jax.Array) -> jax.Array:
        """Returns a changed copy of the best point; in the first query the best point itself."""
        key = jax.random.fold_in(state.key, state.iteration)
        draw = self._linf_change if self.norm == "linf" else self._l2_change
        drawn = self.restriction.point(draw(key, state, image), image)
        return jnp.where(state.iteration == 0, state.best, drawn)

    def _room(self, image: jax.Array) -> tuple[Box, int]:
        """Returns the patch that squares lie in, and the channels that have signs of their own."""
        height, width, channels = image.shape
        return self.restriction.box(height, width), 1 if self.restriction.grey else channels

    def _linf_change(self, key: jax.Array, state: SquareState, image: jax.Array) -> jax.Array:
        box, channels = self._room(image)
        sides = _sides(self.num_steps, box.height, box.width, odd=False)
        place_key, sign_key = jax.random.split(key)
        side = jnp.asarray(sides)[state.iteration]
        window, _ = _window(place_key, side, box, image.shape)
        change = self.epsilon * _signs(sign_key, (1, 1, channels))
        return jnp.where(window, jnp.clip(image + change, 0.0, 1.0), state.best)

    def _l2_change(self, key: jax.Array, state: SquareState, image: jax.Array) -> jax.Array:
        """Moves the change of one window into another (algorithm 3)."""
        box, channels = self._room(image)
        sides = _sides(self.num_steps, box.height, box.width, odd=True)
        kinds, kind = np.unique(sides, return_inverse=True)
        bumps = jnp.asarray(np.stack([_bump(side, *image.shape[:2]) for side in kinds]))
        keys = jax.random.split(key, 4)
        side = jnp.asarray(sides)[state.iteration]
        here, corner = _window(keys[0], side, box, image.shape)
        there, _ = _window(keys[1], side, box, image.shape)
        bump = bumps[jnp.asarray(kind, jnp.int32)[state.iteration]]
        bump = bump[jax.random.bernoulli(keys[2]).astype(jnp.int32)]
        bump = jnp.roll(bump, corner, (0, 1))[..., None] * _signs(keys[3], (1, 1, channels))

        delta = state.best - image
        unused = jnp.maximum(self.epsilon**2 - jnp.sum(delta**2), 0.0)
        budget = (
            jnp.sum(delta**2 * (here | there), axis=(0, 1), keepdims=True)
            + unused / image.shape[-1]
        )
        old = delta * here
        new = bump + old / (1e-12 + _channel_norms(old))
        new = new / (1e-12 + _channel_norms(new)) * jnp.sqrt(budget)
        delta = jnp.where(here, new, jnp.where(there, 0.0, delta))
        return jnp.clip(image + self._scaled(delta), 0.0, 1.0)

    def _scaled(self, change: jax.Array) -> jax.Array:
        return normalize(change, norm_of(change, "l2")) * self.epsilon


def _signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.rademacher(key, shape, jnp.float32)


def _channel_norms(change: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(change**2, axis=(0, 1), keepdims=True))


def _placed(change: jax.Array, box: Box, shape: tuple[int, ...]) -> jax.Array:
    """Returns (H, W, C): a change that broadcasts to the shape of the box, and 0 around it."""
    change = jnp.broadcast_to(change, (box.height, box.width, shape[-1]))
    if change.shape == shape:
        return change
    rows, columns = (box.top, shape[0] - box.top - box.height), shape[1] - box.left - box.width
    return jnp.pad(change, (rows, (box.left, columns), (0, 0)))


def _window(
    key: jax.Array, side: jax.Array, box: Box, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns the pixels (H, W, 1) bool of a square at a random place in the box, and its corner
    (2,)."""
    draws = jax.random.uniform(key, (2,))
    room = jnp.array([box.height, box.width]) - side + 1
    corner = jnp.minimum((draws * room).astype(jnp.int32), room - 1)
    corner += jnp.array([box.top, box.left])
    rows, columns = jnp.arange(shape[0]) - corner[0], jnp.arange(shape[1]) - corner[1]
    inside = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))[None]
    return inside[..., None], corner


def _sides(queries: int, height: int, width: int, odd: bool) -> np.ndarray:
    """Returns (queries,) int32, the side of the square of each query; odd and at least 3 for L2."""
    progress = np.arange(queries) * 10_000 // queries  # the paper's schedule has 10,000 queries
    halvings = np.searchsorted(HALVINGS, progress)
    sides = np.rint(np.sqrt(SHARE / 2.0**halvings * height * width)).astype(np.int32)
    sides = np.maximum(sides, 3 if odd else 1)
    most = min(height, width)
    if odd:
        sides, most = sides + (sides % 2 == 0), most - (most % 2 == 0)
    return np.minimum(sides, most).astype(np.int32)


def _bump(side: int, height: int, width: int) -> np.ndarray:
    """Returns (2, H, W) float32: the two-sided bump of algorithm 3's η in the corner, and turned.

    Its halves have opposite signs; its length is 1.
    """
    bump = np.zeros((side, side))
    bump[: side // 2], bump[side // 2 :] = _half(side // 2, side), -_half(side - side // 2, side)
    bump /= np.linalg.norm(bump)
    result = np.zeros((2, height, width), np.float32)
    result[:, :side, :side] = bump, bump.T
    return result


def _half(rows: int, columns: int) -> np.ndarray:
    """Returns concentric rectangles around the middle, 1/r² more at each smaller radius r."""
    distance = np.maximum(
        np.abs(np.arange(rows) - rows // 2)[:, None], np.abs(np.arange(columns) - columns // 2)
    )
    rings = max(rows // 2, columns // 2) + 1
    weights = np.cumsum(1 / np.arange(rings, 0, -1.0) ** 2)[::-1]
    half = weights[distance]
    return half / max(np.linalg.norm(half), 1e-12)


def _tiles(key: jax.Array, height: int, width: int, channels: int) -> jax.Array:
    """Returns (H, W, C): bumps of a fifth of the height side by side, of random signs."""
    side = max(height // 5, 1)
    down, across = height // side, width // side
    turn_key, sign_key = jax.random.split(key)
    bump = jnp.asarray(_bump(side, side, side))
    turned = jax.random.bernoulli(turn_key, shape=(down, across)).astype(jnp.int32)
    tiles = bump[turned][..., None] * _signs(sign_key, (down, across, 1, 1, channels))
    grid = tiles.transpose(0, 2, 1, 3, 4).reshape(down * side, across * side, channels)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    rest = ((top, height - down * side - top), (left, width - across * side - left), (0, 0))
    return jnp.pad(grid, rest)
