"""FAB: the fast adaptive boundary attack, for small perturbations.

Croce & Hein (2020), "Minimally distorted adversarial examples with a fast adaptive boundary
attack", algorithm 1, from the image itself, without its final search. Each step projects the
current point and the image onto the decision boundary as it looks at the point, and goes to a
mixture of both. An image is done as soon as an adversarial point lies within ε.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medadv_jax.attacks.norms import norm_of, normalize
from medadv_jax.attacks.spec import LogitsFn
from medadv_jax.attacks.stepwise import Examples, StepwiseAttack

ALPHA_MAX = 0.1  # largest weight of the image's projection
OVERSHOOT = 1.05  # η, of both projections
BACKWARD = 0.9  # β, towards the image from an adversarial point


class FabState(NamedTuple):
    """Where the attack on an image stands."""

    point: jax.Array  # (H, W, C)
    best: jax.Array  # (H, W, C) nearest adversarial point, brought back to the ball
    distance: jax.Array  # () of the nearest adversarial point; infinite: none yet
    success: jax.Array  # () bool: is that distance at most ε?
    done: jax.Array  # () bool
    iteration: jax.Array  # () int32


@dataclasses.dataclass(frozen=True)
class Fab(StepwiseAttack):
    """FAB. Fields: see `StepwiseAttack`.

    Untargeted it takes a gradient for each class, targeted one; with two classes both are the same.
    """

    def start(self, example: Examples, key: jax.Array) -> FabState:
        """Returns the state at the image."""
        del key
        no, image = jnp.zeros((), bool), example.image
        return FabState(image, image, jnp.float32(jnp.inf), no, no, jnp.int32(0))

    def step(self, logits_fn: LogitsFn, state: FabState, examples: Examples) -> FabState:
        """Linearises the boundary at the points and moves towards it."""
        difference, gradient = self._nearest_boundary(logits_fn, state.point, examples)
        point = jax.vmap(self._move)(state.point, examples.image, difference, gradient)
        wrong = jnp.argmax(logits_fn(point), axis=-1) != examples.label
        return jax.vmap(self._record)(state, point, wrong, examples.image)

    def _nearest_boundary(
        self, logits_fn: LogitsFn, points: jax.Array, examples: Examples
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the lead (B,) of another class over the label, and its gradient (B, H, W, C)."""
        logits, pull_back = jax.vjp(lambda x: logits_fn(x).astype(jnp.float32), points)
        count = logits.shape[-1]
        own = jax.nn.one_hot(examples.label, count)

        def lead(classes: jax.Array) -> tuple[jax.Array, jax.Array]:
            towards = jax.nn.one_hot(classes, count) - own
            return jnp.sum(logits * towards, axis=-1), pull_back(towards)[0]

        if self.num_targets:
            return lead(examples.target)
        others = (examples.label[None] + jnp.arange(1, count)[:, None]) % count  # (K - 1, B)
        if count == 2:
            return lead(others[0])
        leads, gradients = jax.lax.map(lead, others)
        dual = "l1" if self.norm == "linf" else "l2"
        lengths = jax.vmap(jax.vmap(lambda x: norm_of(x, dual)))(gradients)
        nearest = jnp.argmin(jnp.abs(leads) / (lengths + 1e-12), axis=0)[None]
        chosen = jnp.take_along_axis(gradients, nearest[..., None, None, None], axis=0)
        return jnp.take_along_axis(leads, nearest, axis=0)[0], chosen[0]

    def _move(
        self, point: jax.Array, image: jax.Array, difference: jax.Array, gradient: jax.Array
    ) -> jax.Array:
        offset = jnp.sum(gradient * (image - point))
        own = to_hyperplane(point, gradient, -difference, self.norm)
        original = to_hyperplane(image, gradient, -difference - offset, self.norm)
        lengths = jnp.maximum(norm_of(own, self.norm), 1e-8), norm_of(original, self.norm)
        alpha = jnp.minimum(lengths[0] / (lengths[0] + lengths[1]), ALPHA_MAX)
        ahead = (1 - alpha) * (point + OVERSHOOT * own) + alpha * (image + OVERSHOOT * original)
        return self.restriction.point(jnp.clip(ahead, 0.0, 1.0), image)

    def _record(
        self, state: FabState, point: jax.Array, wrong: jax.Array, image: jax.Array
    ) -> FabState:
        distance = norm_of(point - image, self.norm)
        nearer = wrong & (distance < state.distance)
        inside = self.ball.project(point, image, jnp.float32(self.epsilon))
        success = state.success | (wrong & (distance <= self.epsilon))
        return FabState(
            point=jnp.where(wrong, image + BACKWARD * (point - image), point),
            best=jnp.where(nearer, inside, state.best),
            distance=jnp.where(nearer, distance, state.distance),
            success=success,
            done=success | (state.iteration + 1 >= self.num_steps),
            iteration=state.iteration + 1,
        )


def to_hyperplane(point: jax.Array, normal: jax.Array, rise: jax.Array, norm: str) -> jax.Array:
    """Returns the shortest step δ with normal·δ = rise and point + δ in [0, 1] (eqs. 5 and 6).

    δ_i has the size min(t·v_i, room_i), v = 1 (L∞) or |normal| (L2), and the smallest t that
    suffices. Newton's method finds t from below, as the rise is concave in t. If the plane does not
    meet [0, 1], every pixel goes as far as it can.
    """
    direction = jnp.sign(rise) * jnp.sign(normal)
    size, wanted = jnp.abs(normal), jnp.abs(rise)
    room = jnp.where(direction > 0, 1 - point, jnp.where(direction < 0, point, 0.0))
    speed = jnp.ones_like(size) if norm == "linf" else normalize(size, jnp.max(size))

    def newton(_: int, t: jax.Array) -> jax.Array:
        reached = jnp.sum(size * jnp.minimum(t * speed, room))
        slope = jnp.sum(jnp.where(t * speed < room, size * speed, 0.0))
        return t + jnp.maximum(normalize(wanted - reached, slope), 0.0)

    t = jax.lax.fori_loop(0, 20, newton, jnp.float32(0))
    limit = jnp.sum(size * room) <= wanted  # the plane is out of reach
    step = jnp.where(limit, room, jnp.minimum(t * speed, room))
    return direction * step
