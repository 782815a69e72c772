"""FMN: fast minimum-norm attack, for small perturbations.

Pintor et al. (2021), "Fast minimum-norm adversarial attacks through adaptive norm constraints",
algorithm 1. The radius shrinks where the point is adversarial and grows where it is not, while
gradient steps of falling length follow the margin. An image is done as soon as an adversarial
point lies within ε.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medadv_jax.attacks.losses import margin, targeted_margin
from medadv_jax.attacks.norms import norm_of, normalize
from medadv_jax.attacks.spec import LogitsFn
from medadv_jax.attacks.stepwise import Examples, StepwiseAttack

STEP, LAST_STEP = 1.0, 0.01  # α, of gradients of L2 length 1
SHRINK, LAST_SHRINK = 0.05, 0.001  # γ, of the radius
# The radius to the linearised boundary is stretched by this: a point on the boundary itself is not
# adversarial, and on a linear model the published radius would stay there for ever.
STRETCH = 1.001


class FmnState(NamedTuple):
    """Where the attack on an image stands."""

    point: jax.Array  # (H, W, C)
    radius: jax.Array  # () of the ball that the point is kept in
    best: jax.Array  # (H, W, C) nearest adversarial point, brought back to the ball of ε
    distance: jax.Array  # () of the nearest adversarial point; infinite: none yet
    success: jax.Array  # () bool: is that distance at most ε?
    done: jax.Array  # () bool
    iteration: jax.Array  # () int32


@dataclasses.dataclass(frozen=True)
class Fmn(StepwiseAttack):
    """FMN from the image itself. Fields: see `StepwiseAttack`."""

    def start(self, example: Examples, key: jax.Array) -> FmnState:
        """Returns the state at the image."""
        del key
        no, image, far = jnp.zeros((), bool), example.image, jnp.float32(jnp.inf)
        return FmnState(image, far, image, far, no, no, jnp.int32(0))

    def step(self, logits_fn: LogitsFn, state: FmnState, examples: Examples) -> FmnState:
        """Takes a gradient of the margin, fits the radius, and moves."""

        def total(points: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            logits = logits_fn(points).astype(jnp.float32)
            if self.num_targets:
                lead = targeted_margin(logits, examples.label, examples.target)
            else:
                lead = margin(logits, examples.label)
            return jnp.sum(lead), (lead, jnp.argmax(logits, axis=-1) != examples.label)

        gradient, (lead, wrong) = jax.grad(total, has_aux=True)(state.point)
        return jax.vmap(self._update)(state, lead, wrong, gradient, examples.image)

    def _update(
        self,
        state: FmnState,
        lead: jax.Array,
        wrong: jax.Array,
        gradient: jax.Array,
        image: jax.Array,
    ) -> FmnState:
        ball = self.ball
        length = norm_of(state.point - image, self.norm)
        nearer = wrong & (length < state.distance)
        distance = jnp.where(nearer, length, state.distance)
        inside = ball.project(state.point, image, jnp.float32(self.epsilon))
        radius = self._radius(state, lead, wrong, gradient, length, distance)
        ascent = _cosine(state.iteration, self.num_steps, STEP, LAST_STEP)
        step = ascent * normalize(gradient, norm_of(gradient, "l2"))
        success = state.success | (wrong & (length <= self.epsilon))
        return FmnState(
            point=ball.project(state.point + step, image, radius),
            radius=radius,
            best=jnp.where(nearer, inside, state.best),
            distance=distance,
            success=success,
            done=success | (state.iteration >= self.num_steps),
            iteration=state.iteration + 1,
        )

    def _radius(
        self,
        state: FmnState,
        lead: jax.Array,
        wrong: jax.Array,
        gradient: jax.Array,
        length: jax.Array,
        distance: jax.Array,
    ) -> jax.Array:
        """Returns ε_k: to the linearised boundary until a point is adversarial, then in steps."""
        gamma = _cosine(state.iteration, self.num_steps, SHRINK, LAST_SHRINK)
        dual = norm_of(gradient, "l1" if self.norm == "linf" else "l2")
        towards = length + jnp.abs(lead) / jnp.maximum(dual, 1e-12)
        outside = jnp.where(jnp.isinf(distance), towards * STRETCH, state.radius * (1 + gamma))
        return jnp.where(wrong, jnp.minimum(state.radius * (1 - gamma), distance), outside)


def _cosine(iteration: jax.Array, num_steps: int, first: float, last: float) -> jax.Array:
    """Returns a value that falls from `first` to `last` along half a cosine."""
    turn = jnp.cos(jnp.pi * iteration / num_steps)
    return last + (first - last) * (1 + turn) / 2
