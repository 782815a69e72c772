"""APGD: projected gradient ascent with momentum whose step is halved when progress stalls.

Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", algorithm 1. Two choices follow the authors' program where the paper is
silent: the start lies on the boundary of the ball, and a checkpoint is looked at as soon as its
point has a loss, which saves one gradient for each halving.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks import losses
from medadv_jax.attacks.norms import norm_of
from medadv_jax.attacks.restriction import FREE
from medadv_jax.attacks.stepwise import Examples, StepwiseAttack

MOMENTUM = 0.75  # α
RHO = 0.75  # share of a window's steps that must raise the loss

# (logits (B, K), labels (B,), targets (B,)) -> (B,)
TargetLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
APGD_LOSSES: dict[str, TargetLoss] = {
    "cross_entropy": lambda logits, labels, _: losses.cross_entropy(logits, labels),
    "margin": lambda logits, labels, _: losses.margin(logits, labels),
    "dlr": lambda logits, labels, _: losses.dlr(logits, labels),
}
TARGETED_LOSSES: dict[str, TargetLoss] = {
    "cross_entropy": lambda logits, _, targets: -losses.cross_entropy(logits, targets),
    "margin": losses.targeted_margin,
    "dlr": losses.targeted_dlr,
}


class ApgdState(NamedTuple):
    """Where the attack on an image stands."""

    point: jax.Array  # (H, W, C) where the next gradient is taken
    previous: jax.Array  # (H, W, C) the point before it
    best: jax.Array  # (H, W, C) of the highest loss, or the first misclassified one
    best_gradient: jax.Array  # (H, W, C)
    best_loss: jax.Array  # ()
    last_loss: jax.Array  # () at the point before this one
    increases: jax.Array  # () int32, steps since the last checkpoint that raised the loss
    step_size: jax.Array  # ()
    halved: jax.Array  # () bool, at the last checkpoint
    checkpoint_loss: jax.Array  # () best loss at the last checkpoint
    key: jax.Array  # of this image's draws
    success: jax.Array  # () bool
    done: jax.Array  # () bool
    iteration: jax.Array  # () int32


@dataclasses.dataclass(frozen=True)
class Apgd(StepwiseAttack):
    """APGD. Further fields: see `StepwiseAttack`.

    Attributes:
      loss: "cross_entropy", "margin" or "dlr"; untargeted "dlr" needs at least three classes,
        targeted "dlr" is the margin to the target where there are fewer than four.
      samples: for randomised classifiers: draws over which loss and gradient are averaged in each
        step (expectation over transformation, Athalye et al. 2018). `logits_fn` then takes pixels
        and a key for each image (B,), and an image is misclassified if most draws are. 0: none.
    """

    loss: str = "cross_entropy"
    samples: int = 0

    def __post_init__(self):
        """Raises ValueError for impossible values."""
        super().__post_init__()
        if self.samples < 0:
            raise ValueError(f"{self.name}: samples={self.samples} must be at least 0")
        if self.loss not in APGD_LOSSES:
            known = ", ".join(sorted(APGD_LOSSES))
            raise ValueError(f"loss={self.loss!r}: known are {known}")

    def start(self, example: Examples, key: jax.Array) -> ApgdState:
        """Returns the state at a random point of the ball's boundary."""
        image, ball = example.image, self.ball
        if self.norm == "linf":
            noise = jax.random.uniform(key, image.shape, minval=-1.0)
        else:
            noise = jax.random.normal(key, image.shape)
        if self.restriction != FREE:
            noise = self.restriction.direction(noise)
        noise = noise / norm_of(noise, self.norm)
        point = ball.project(image + self.epsilon * noise, image, jnp.float32(self.epsilon))
        low, no = jnp.float32(-jnp.inf), jnp.zeros((), bool)
        return ApgdState(
            point=point, previous=point, best=point, best_gradient=jnp.zeros_like(point),
            best_loss=low, last_loss=jnp.float32(jnp.inf), increases=jnp.int32(0),
            step_size=jnp.float32(2 * self.epsilon), halved=no, checkpoint_loss=low,
            key=key, success=no, done=no, iteration=jnp.int32(0),
        )  # fmt: skip

    def step(
        self, logits_fn: Callable[..., jax.Array], state: ApgdState, examples: Examples
    ) -> ApgdState:
        """Takes a gradient at the current points and moves."""
        gradient, loss, success = self._gradient(logits_fn, state, examples)
        state = jax.vmap(self._record)(state, loss, success, gradient)
        state, gradient = jax.vmap(self._check)(state, loss, gradient)
        return jax.vmap(self._move)(state, gradient, examples.image)

    def _gradient(
        self, logits_fn: Callable[..., jax.Array], state: ApgdState, examples: Examples
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the gradient (B, H, W, C), loss (B,) and success (B,) at the current points."""
        loss_fn = (TARGETED_LOSSES if self.num_targets else APGD_LOSSES)[self.loss]

        def total(points: jax.Array, *keys: jax.Array) -> tuple[jax.Array, Any]:
            logits = logits_fn(points, *keys).astype(jnp.float32)
            loss = loss_fn(logits, examples.label, examples.target)
            return jnp.sum(loss), (loss, jnp.argmax(logits, axis=-1) != examples.label)

        if not self.samples:
            gradient, (loss, success) = jax.grad(total, has_aux=True)(state.point)
            return gradient, loss, success

        def sample(number: jax.Array) -> Any:
            keys = sample_keys(state.key, 1 + state.iteration * self.samples + number)
            return jax.grad(total, has_aux=True)(state.point, keys)

        found = jax.lax.map(sample, jnp.arange(self.samples))
        gradient, (loss, share) = jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
        return gradient, loss, share > 0.5

    def _record(
        self, state: ApgdState, loss: jax.Array, success: jax.Array, gradient: jax.Array
    ) -> ApgdState:
        """Counts a rise of the loss, and keeps the point if it is the best."""
        better = (loss > state.best_loss) | (state.iteration == 0)
        return state._replace(
            best=jnp.where(better | success, state.point, state.best),
            best_gradient=jnp.where(better, gradient, state.best_gradient),
            best_loss=jnp.where(better, loss, state.best_loss),
            increases=state.increases + (loss > state.last_loss),
            checkpoint_loss=jnp.where(state.iteration == 0, loss, state.checkpoint_loss),
            success=success,
            done=success | (state.iteration == self.num_steps),
        )

    def _check(
        self, state: ApgdState, loss: jax.Array, gradient: jax.Array
    ) -> tuple[ApgdState, jax.Array]:
        """At a checkpoint: halves the step and goes back to the best point if progress stalled."""
        window = jnp.asarray(windows(self.num_steps))[state.iteration]
        at_checkpoint = window > 0
        few_rises = state.increases < RHO * window
        no_gain = ~state.halved & (state.checkpoint_loss == state.best_loss)
        halve = at_checkpoint & (few_rises | no_gain)
        moved = state._replace(
            point=jnp.where(halve, state.best, state.point),
            step_size=jnp.where(halve, state.step_size / 2, state.step_size),
            last_loss=jnp.where(halve, state.best_loss, loss),
            increases=jnp.where(at_checkpoint, 0, state.increases),
            halved=jnp.where(at_checkpoint, halve, state.halved),
            checkpoint_loss=jnp.where(at_checkpoint, state.best_loss, state.checkpoint_loss),
        )
        return moved, jnp.where(halve, state.best_gradient, gradient)

    def _move(self, state: ApgdState, gradient: jax.Array, image: jax.Array) -> ApgdState:
        """A gradient step, averaged with the last change of the point (algorithm 1, α)."""
        ball, radius = self.ball, jnp.float32(self.epsilon)
        ahead = state.point + state.step_size * ball.direction(gradient)
        ahead = ball.project(ahead, image, radius)
        weight = jnp.where(state.iteration == 0, 1.0, MOMENTUM)
        change = weight * (ahead - state.point) + (1 - weight) * (state.point - state.previous)
        point = ball.project(state.point + change, image, radius)
        return state._replace(point=point, previous=state.point, iteration=state.iteration + 1)


def sample_keys(keys: jax.Array, numbers: jax.Array) -> jax.Array:
    """Returns a new key for each of (B,) keys."""
    return jax.vmap(jax.random.fold_in)(keys, numbers)


def windows(num_steps: int) -> np.ndarray:
    """Returns (num_steps + 1,) int32: at checkpoint w_j the steps since w_{j-1}, elsewhere 0.

    w_j = ⌈p_j N⌉ with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).
    """
    result = np.zeros(num_steps + 1, np.int32)
    share, length, last = 22, 22, 0  # in hundredths: exact
    while share <= 100:
        checkpoint = -(-share * num_steps // 100)
        if checkpoint > last:
            result[checkpoint] = checkpoint - last
        length = max(length - 3, 6)
        share, last = share + length, checkpoint
    return result
