"""Any function from pixels to logits, compiled once for all attacks and checks.

A function is traced for one batch size. The arrays that it holds, such as a network's parameters,
become arguments of the compiled programs: as constants in them, they would be compiled each time.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from medadv_jax.attacks import Attack
from medadv_jax.attacks.autoattack import AutoAttack
from medadv_jax.attacks.continuous_batching import AttackJob, AttackQueue
from medadv_jax.attacks.square import Square
from medadv_jax.attacks.stepwise import Found, StepwiseQueue
from medadv_jax.evaluation.model_under_test import is_correct


class Traced(NamedTuple):
    """A function, traced for one shape.

    Attributes:
      run: (constants, *arguments) -> logits (N, K).
      constants: the arrays that it holds.
      num_classes: K.
      dtype: of the logits.
    """

    run: Callable[..., jax.Array]
    constants: Sequence[Any]
    num_classes: int
    dtype: Any


class Attacked(NamedTuple):
    """What an attack found on m images.

    Attributes:
      pixels: (m, H, W, C) float32 in [0, 1]; the image itself where nothing was found.
      broken_through: (m,) int: the position in `sources` of the function whose gradients broke the
        image, as `logits_fn` confirms; -1: it stays correct.
      unconfirmed: images that an attack believed to have broken, and `logits_fn` classifies
        correctly.
      passes: gradients of the network, or queries of Square, summed over images.
    """

    pixels: np.ndarray
    broken_through: np.ndarray
    unconfirmed: int
    passes: int


class FunctionUnderTest:
    """The compiled programs of a function, and of others whose gradients attackers use as well.

    Args of the constructor:
      logits_fn: pixels (N, H, W, C) -> logits (N, K); with `randomized` attacks, pixels and a key
        for each image -> logits.
      surrogates: of the same form; see `evaluate`.
      image_shape: (H, W, C).
      slots: N, images at a time.
      norm: of balls and steps.
      randomized: AutoAttack of version "rand", for a function that takes keys; else None.
      seed: of all draws.

    Attributes:
      sources: names of the functions whose gradients attackers use; the first is `logits_fn`.
      num_classes: K.
      dtype: of the logits of `logits_fn`.
      slots: N.
      key: of `seed`.
    """

    def __init__(
        self,
        logits_fn: Callable[..., jax.Array],
        surrogates: Sequence[Callable[..., jax.Array]],
        image_shape: tuple[int, ...],
        slots: int,
        norm: str,
        randomized: AutoAttack | None,
        seed: int,
    ):
        self.slots, self.key, self._function = slots, jax.random.key(seed), logits_fn
        self._randomized = randomized
        functions = [logits_fn, *surrogates]
        names = ["logits_fn", *(f"surrogate {i}" for i in range(1, len(functions)))]
        arguments = [jnp.zeros((slots, *image_shape), jnp.float32)]
        if randomized is not None:
            arguments.append(jax.random.split(self.key, slots))
        traced = [
            trace(function, name, arguments)
            for name, function in zip(names, functions, strict=True)
        ]
        self.sources, self._traced = tuple(names), dict(zip(names, traced, strict=True))
        self.num_classes, self.dtype = traced[0].num_classes, traced[0].dtype
        for name, each in self._traced.items():
            if each.num_classes != self.num_classes:
                raise ValueError(
                    f"{name}: returns {each.num_classes} logits, logits_fn {self.num_classes}"
                )
        self._variables = {name: each.constants for name, each in self._traced.items()}
        self._queue = AttackQueue(self._mean_logits, slots, norm)
        self._forward = jax.jit(self._mean_logits, static_argnums=2)
        self._stepwise: dict[Any, StepwiseQueue] = {}

    @property
    def randomized(self) -> bool:
        """Whether logits are means over draws."""
        return self._randomized is not None

    def _mean_logits(self, variables: Any, pixels: jax.Array, source: str) -> jax.Array:
        """Returns logits (N, K) of a source; of a randomised function the mean over draws."""

        def function(*arguments: jax.Array) -> jax.Array:
            return self._traced[source].run(variables[source], *arguments)

        if self._randomized is None:
            return function(pixels)
        return self._randomized.clean_logits(function, pixels, self.key)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the logits of `logits_fn`, any (m, H, W, C) -> (m, K) float32, in batches.

        Of a randomised function: the mean of `SAMPLES` draws, which depend on the pixels.
        """
        found = [np.zeros((0, self.num_classes), np.float32)]
        for first in range(0, len(pixels), self.slots):
            part = pixels[first : first + self.slots]
            whole = part[np.arange(self.slots) % len(part)]
            logits = self._forward(self._variables, whole, self.sources[0])
            found.append(np.asarray(logits)[: len(part)].astype(np.float32))
        return np.concatenate(found)

    def call(self, pixels: np.ndarray) -> np.ndarray:
        """Returns what `logits_fn` itself says, not compiled here, (N, H, W, C) -> (N, K).

        A randomised function is given the same keys in each call.
        """
        if self._randomized is None:
            return np.asarray(self._function(jnp.asarray(pixels)))
        keys = jax.random.split(self.key, len(pixels))
        return np.asarray(self._function(jnp.asarray(pixels), keys))

    def gradients(self, pixels: np.ndarray, labels: np.ndarray, source: str) -> np.ndarray:
        """Returns gradients of the cross-entropy, any (m, H, W, C), (m,) -> (m, H, W, C)."""
        found = []
        for first in range(0, len(pixels), self.slots):
            rows = np.arange(first, first + self.slots) % len(pixels)
            gradients = self._queue.gradients(self._variables, pixels[rows], labels[rows], source)
            found.append(gradients.gradient)
        return np.concatenate(found)[: len(pixels)]

    def attack(
        self,
        attack: Any,
        images: np.ndarray,
        labels: np.ndarray,
        key: jax.Array,
        advance: Callable[[int], None] = lambda runs: None,
    ) -> Attacked:
        """Attacks images (m, H, W, C) with labels (m,), any m, by the gradients of each source.

        A source attacks only the images that those before it could not break. `advance` is told
        the number of runs that are done or not needed, `count_runs` in all.
        """
        pixels, broken_through = images.copy(), np.full(len(images), -1)
        unconfirmed = passes = 0
        for number, source in enumerate(self._sources_of(attack)):
            rows = np.flatnonzero(broken_through < 0)
            advance((len(images) - len(rows)) * self._tries(attack))
            found = self._run(attack, source, images[rows], labels[rows], key, advance)
            wrong = ~is_correct(self.logits(found.pixels), labels[rows])
            pixels[rows[wrong]], broken_through[rows[wrong]] = found.pixels[wrong], number
            unconfirmed += int((found.success & ~wrong).sum())
            passes += found.passes
        return Attacked(pixels, broken_through, unconfirmed, passes)

    def count_runs(self, attack: Any, count: int) -> int:
        """Returns the number of runs of an attack on `count` images."""
        return count * len(self._sources_of(attack)) * self._tries(attack)

    def _sources_of(self, attack: Any) -> tuple[str, ...]:
        """A random search has no use for another function's gradients."""
        return self.sources[:1] if isinstance(attack, Square) else self.sources

    def _tries(self, attack: Any) -> int:
        """Runs on one image: random starts, or targets."""
        if isinstance(attack, Attack):
            return attack.num_restarts
        return min(attack.num_targets, self.num_classes - 1) or 1

    def _run(
        self,
        attack: Any,
        source: str,
        images: np.ndarray,
        labels: np.ndarray,
        key: jax.Array,
        advance: Callable[[int], None],
    ) -> Found:
        if isinstance(attack, Attack):
            before, jobs = self._queue.passes, [AttackJob(attack)]
            pixels = self._queue.run(self._variables, images, labels, jobs, key, source, advance)[0]
            # It does not say what it believes to have broken.
            return Found(pixels, np.zeros(len(images), bool), self._queue.passes - before)
        if (attack, source) not in self._stepwise:
            self._stepwise[attack, source] = self._compiled(attack, source)
        queue, logits = self._stepwise[attack, source], self.logits(images)
        return queue.run_targets(self._variables, images, labels, logits, key, advance)

    def _compiled(self, attack: Any, source: str) -> StepwiseQueue:
        def logits_fn(variables: Any, pixels: jax.Array, *keys: jax.Array) -> jax.Array:
            if keys:  # the attack averages over draws itself
                return self._traced[source].run(variables[source], pixels, *keys)
            return self._mean_logits(variables, pixels, source)

        return StepwiseQueue(attack, logits_fn, self.slots)


def trace(function: Callable[..., jax.Array], name: str, arguments: Sequence[jax.Array]) -> Traced:
    """Returns the traced function; ValueError if it cannot be traced or returns no logits."""
    try:
        closed = jax.make_jaxpr(function)(*arguments)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{name}: jax cannot trace it ({type(error).__name__}: {reason}); put the model in"
            " evaluation mode, so that calls change no state; code outside of jax needs"
            " jax.pure_callback, see docs/evaluation.md"
        ) from error
    shapes, count = [value.shape for value in closed.out_avals], len(arguments[0])
    if shapes in ([(count,)], [(count, 1)]):
        raise ValueError(
            f"{name}: returns one logit z for each image; return two, as by"
            " jnp.stack([jnp.zeros_like(z), z], axis=-1) for z of shape (N,)"
        )
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != count:
        found = ", ".join(map(str, shapes)) or "nothing"
        raise ValueError(f"{name}: returns {found}, not logits ({count}, K) for {count} images")

    def run(constants: Sequence[Any], *arguments: jax.Array) -> jax.Array:
        (logits,) = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, constants))(*arguments)
        return logits

    return Traced(run, closed.consts, shapes[0][1], closed.out_avals[0].dtype)
