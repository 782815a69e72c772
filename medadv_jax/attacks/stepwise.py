"""The loop of `loop.py` as small compiled programs, a step at a time.

One program that holds every step compiles for minutes on XLA's CPU backend, and its loops are slow
there (up to 7 times); a compiled step that the host repeats costs a few per cent more time than
the one program, and compiles in seconds. On GPU and TPU one program with a `fori_loop` is right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from medadv_jax.attacks import loop as parts

if TYPE_CHECKING:
    from medadv_jax.attacks.spec import Attack

# (variables, pixels (N, H, W, C)) -> (N, K), or (N,) for a penalty
VariablesFn = Callable[[Any, jax.Array], jax.Array]


def compile_attacks(
    attacks: Sequence[Attack],
    logits_fn: VariablesFn,
    loop: str = "auto",
    penalty_fn: VariablesFn | None = None,
) -> Callable[[Any, jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """Returns the compiled attacks: (variables, images, labels, key) -> (L, B, H, W, C).

    Args:
      attacks: L attacks; see `run_attacks`.
      logits_fn: (variables, pixels) -> logits.
      loop: "stepwise", or "unrolled" or "fori_loop" for one program; "auto": stepwise on CPU, else
        `fori_loop`. The results agree to rounding.
      penalty_fn: (variables, pixels) -> (N,), subtracted from the loss; None: nothing.
    """
    if loop == "auto":
        loop = "stepwise" if jax.default_backend() == "cpu" else "fori_loop"
    if loop == "stepwise":
        return _Stepwise(attacks, logits_fn, penalty_fn)

    def run(variables: Any, images: jax.Array, labels: jax.Array, key: jax.Array | None):
        bound, penalty = _bind(logits_fn, penalty_fn, variables)
        return parts.run_attacks(attacks, bound, images, labels, key, loop=loop, penalty_fn=penalty)

    return jax.jit(run)


def _bind(logits_fn: VariablesFn, penalty_fn: VariablesFn | None, variables: Any) -> tuple:
    penalty = None if penalty_fn is None else functools.partial(penalty_fn, variables)
    return functools.partial(logits_fn, variables), penalty


class _Stepwise:
    """Three programs: the start, one step (for each number of lanes that are left), the end."""

    def __init__(
        self, attacks: Sequence[Attack], logits_fn: VariablesFn, penalty_fn: VariablesFn | None
    ):
        plan = parts.plan_lanes(attacks)

        def begin(images: jax.Array, labels: jax.Array, key: jax.Array | None) -> Any:
            shape = (images.shape[0], len(plan.lanes))
            images = jnp.broadcast_to(images[:, None], (*shape, *images.shape[1:]))
            return parts.begin(plan, images, jnp.broadcast_to(labels[:, None], shape), key)

        def step(variables: Any, *arguments: Any) -> Any:
            score_fn = parts.make_score_fn(plan, *_bind(logits_fn, penalty_fn, variables))
            return parts.make_step(plan, score_fn)(*arguments)

        def end(variables: Any, state: Any, labels: jax.Array) -> jax.Array:
            score_fn = parts.make_score_fn(plan, *_bind(logits_fn, penalty_fn, variables))
            return parts.strongest(attacks, *parts.end(plan, score_fn, state, labels))

        self._plan = plan
        self._begin, self._step, self._end = (jax.jit(part) for part in (begin, step, end))

    def __call__(
        self, variables: Any, images: jax.Array, labels: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Runs the attacks; see `compile_attacks`."""
        state, points, targets = self._begin(images, labels, key)
        step = functools.partial(self._step, variables)
        # "unrolled" by the host: each step is a call of the same program.
        state = parts.run_segments(self._plan, step, state, points, targets, "unrolled")
        return self._end(variables, state, targets)
