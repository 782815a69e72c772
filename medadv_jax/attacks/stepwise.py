"""Attacks with a state for each image: their loop, and a queue that drops finished images.

An attack gives `start` for one image and `step` for a batch; all its state has the batch axis
first, so that any row may stand at any iteration. `StepwiseAttack.__call__` runs one batch to its
end inside a compiled program. `StepwiseQueue` runs any number of images from the host: a row whose
image is finished is given to the next image, so easy images stay cheap.

To add an attack: subclass `StepwiseAttack`, and name it in `EVALUATION_ATTACKS`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks.inputs import check_count, check_images, check_logits, check_radius
from medadv_jax.attacks.lanes import choose_rows, fingerprint
from medadv_jax.attacks.norms import BALLS, Ball
from medadv_jax.attacks.restriction import FREE, Restriction, make_ball
from medadv_jax.attacks.spec import LogitsFn


class Examples(NamedTuple):
    """Images under attack."""

    image: Any  # (B, H, W, C) float32 in [0, 1]
    label: Any  # (B,) int32, the true class
    target: Any  # (B,) int32, the class to reach; ignored by untargeted attacks


class Found(NamedTuple):
    """Results on n images.

    Attributes:
      pixels: (n, H, W, C) float32 in [0, 1], within ε of the images.
      success: (n,) bool, misclassified during the attack.
      passes: steps taken, summed over images: each is one gradient of the network (FAB: and one
        forward pass; untargeted FAB of K classes: K - 1 gradients), or one query of Square.
    """

    pixels: np.ndarray
    success: np.ndarray
    passes: int


@dataclasses.dataclass(frozen=True)
class StepwiseAttack(abc.ABC):
    """An attack inside a ball around the image, cut with [0, 1]; stops at misclassified images.

    Attributes:
      name: in tables and records.
      epsilon: radius of the ball, in pixels of [0, 1].
      norm: "linf" or "l2".
      num_steps: at most; at least 1.
      num_targets: classes to aim at in turn, by falling clean logit, at most K - 1; 0: untargeted.
      restriction: what of the image may be changed.
    """

    name: str
    epsilon: float | jax.Array
    norm: str = "linf"
    num_steps: int = 100
    num_targets: int = 0
    restriction: Restriction = FREE

    def __post_init__(self):
        """Raises ValueError for impossible values."""
        if self.norm not in BALLS:
            raise ValueError(f"norm={self.norm!r}: known are {', '.join(sorted(BALLS))}")
        check_radius(self.name, self.epsilon, self.norm)
        check_count(self.name, "num_steps", self.num_steps)
        check_count(self.name, "num_targets", self.num_targets, low=0)

    @property
    def ball(self) -> Ball:
        """The geometry: ball and restriction."""
        return make_ball(self.norm, self.restriction)

    @abc.abstractmethod
    def start(self, example: Examples, key: jax.Array) -> Any:
        """Returns the first state of one image, from the image's own key.

        The state is a NamedTuple; among its fields are `best` (H, W, C), `success` () bool,
        `done` () bool and `iteration` () int32, the number of steps taken.
        """

    @abc.abstractmethod
    def step(self, logits_fn: LogitsFn, state: Any, examples: Examples) -> Any:
        """Returns the state (B, …) after one step; rows that are done may change freely."""

    def components(self, num_classes: int) -> tuple["StepwiseAttack", ...]:
        """Returns the attack alone; a set of attacks, like `AutoAttack`, returns its parts."""
        del num_classes
        return (self,)

    def clean_logits(
        self, logits_fn: Callable[..., jax.Array], images: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Returns logits (B, K); a set of attacks for randomised classifiers averages draws."""
        del key
        return logits_fn(images)

    def __call__(
        self,
        logits_fn: LogitsFn,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns adversarial images (B, H, W, C).

        Args:
          logits_fn: pixels (B, H, W, C) -> logits (B, K); treats every image alone.
          images: (B, H, W, C) float32 in [0, 1].
          labels: (B,) integer, the true classes.
          key: of the random draws; an image's draws depend on the key and on its own pixels.

        Raises:
          ValueError: see `Attack.__call__`.
        """
        check_images(images, labels)
        logits_fn = check_logits(logits_fn, labels)
        key = jax.random.key(0) if key is None else key
        none = jnp.zeros(labels.shape, bool)
        found = self.run(logits_fn, images, labels, key, images, none)[0]
        return jax.lax.stop_gradient(found)

    def run(
        self,
        logits_fn: LogitsFn,
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
        best: jax.Array,
        fallen: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Attacks the images (B, …) that have not `fallen` (B,); keeps `best` of the others.

        Returns adversarial images (B, H, W, C), and which images are misclassified now (B,).
        """

        def aim(targets: jax.Array, best: jax.Array, fallen: jax.Array) -> tuple[Any, Any]:
            examples = Examples(images, labels.astype(jnp.int32), targets)
            state = start_batch(self, examples, key)
            state = jax.lax.while_loop(
                lambda state: ~state.done.all(),
                lambda state: advance(self, logits_fn, state, examples),
                state._replace(done=state.done | fallen),
            )
            return choose_rows(fallen, best, state.best), fallen | state.success

        if not self.num_targets:
            return aim(labels.astype(jnp.int32), best, fallen)
        targets = target_classes(logits_fn(images), labels, self.num_targets)
        return jax.lax.fori_loop(
            0, targets.shape[1], lambda i, found: aim(targets[:, i], *found), (best, fallen)
        )


def start_batch(attack: StepwiseAttack, examples: Examples, key: jax.Array) -> Any:
    """Returns the first state (B, …): each image with a key of its own pixels."""

    def start(example: Examples) -> Any:
        return attack.start(example, jax.random.fold_in(key, fingerprint(example.image)))

    return jax.vmap(start)(examples)


def advance(attack: StepwiseAttack, logits_fn: LogitsFn, state: Any, examples: Examples) -> Any:
    """Takes one step in all rows that are not done."""

    def restricted(pixels: jax.Array, *keys: jax.Array) -> jax.Array:
        return logits_fn(attack.restriction.restrict_gradient(pixels), *keys)

    new = attack.step(restricted, state, examples)
    return choose_rows(state.done, state, new)


def target_classes(logits: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """Returns the classes other than the label by falling logit: (B, K) -> (B, min(count, K-1))."""
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    order = jnp.argsort(jnp.where(is_label, -jnp.inf, logits), axis=-1, descending=True)
    return order[:, : min(count, logits.shape[-1] - 1)].astype(jnp.int32)


class StepwiseQueue:
    """One compiled step of an attack, and a batch whose rows are handed from image to image.

    Args of the constructor:
      attack: what to run; its radius is an argument of the programs.
      logits_fn: (variables, pixels (N, H, W, C)) -> logits (N, K); treats every image alone.
      slots: N, images at a time.
      put: places a tree of arrays on the devices, split along their first axes.
    """

    def __init__(
        self,
        attack: StepwiseAttack,
        logits_fn: Callable[..., jax.Array],
        slots: int,
        put: Callable[[Any], Any] = jax.device_put,
    ):
        self.attack, self.slots, self._put = attack, slots, put

        def with_radius(epsilon: jax.Array) -> StepwiseAttack:
            return dataclasses.replace(attack, epsilon=epsilon)

        self._start = jax.jit(
            lambda epsilon, *arguments: start_batch(with_radius(epsilon), *arguments)
        )
        self._choose = jax.jit(choose_rows)
        self._advance = jax.jit(
            lambda epsilon, variables, state, examples: advance(
                with_radius(epsilon),
                check_logits(functools.partial(logits_fn, variables), examples.label),
                state,
                examples,
            )
        )

    def run(
        self,
        variables: Any,
        images: np.ndarray,
        labels: np.ndarray,
        targets: np.ndarray | None,
        key: jax.Array,
        epsilon: float | None = None,
        advance: Callable[[int], None] = lambda images: None,
    ) -> Found:
        """Attacks images (n, H, W, C) of labels (n,), any n; `targets` (n,) if targeted.

        `epsilon`: another radius than the attack's; `advance` is told how many images are done.
        """
        check_images(images, labels)
        radius = np.float32(self.attack.epsilon if epsilon is None else epsilon)
        targets = labels if targets is None else targets
        rows, waiting = np.full(self.slots, -1), list(range(len(images)))[::-1]
        held = np.zeros(self.slots, int)  # image of each row; a free row keeps its last one
        pixels, success, passes = images.copy(), np.zeros(len(images), bool), 0
        state, examples = None, None
        while waiting or (rows >= 0).any():
            fresh = (rows < 0) & (np.cumsum(rows < 0) <= len(waiting))
            if fresh.any():
                for slot in np.flatnonzero(fresh):
                    rows[slot] = held[slot] = waiting.pop()
                values = (images[held], labels[held].astype(np.int32), targets[held])
                examples = self._put(Examples(*values[:2], values[2].astype(np.int32)))
                first = self._start(radius, examples, key)
                state = first if state is None else self._choose(self._put(fresh), first, state)
            state = self._advance(radius, variables, state, examples)
            finished = np.asarray(state.done) & (rows >= 0)
            passes += int((rows >= 0).sum())
            if finished.any():
                places = rows[finished]
                pixels[places] = np.asarray(state.best)[finished]
                success[places] = np.asarray(state.success)[finished]
                rows[finished] = -1
                advance(int(finished.sum()))
        return Found(pixels, success, passes)

    def run_targets(
        self,
        variables: Any,
        images: np.ndarray,
        labels: np.ndarray,
        logits: np.ndarray,
        key: jax.Array,
        advance: Callable[[int], None] = lambda images: None,
        epsilon: float | None = None,
    ) -> Found:
        """Attacks images (n, H, W, C), any n; a targeted attack aims at one class after the other.

        `logits` (n, K) of the images rank the targets, each of which is tried on the images that
        those before it left. `advance` is told the number of attacks that are finished or not
        needed: one for each image, or for each image and target. `epsilon`: see `run`.
        """
        ranks = self.attack.num_targets
        if not ranks:
            return self.run(variables, images, labels, None, key, epsilon, advance)
        targets = np.asarray(target_classes(jnp.asarray(logits), jnp.asarray(labels), ranks))
        pixels, success, passes = images.copy(), np.zeros(len(images), bool), 0
        for rank in range(targets.shape[1]):
            rows = np.flatnonzero(~success)
            advance(len(images) - len(rows))
            found = self.run(
                variables, images[rows], labels[rows], targets[rows, rank], key, epsilon, advance
            )
            pixels[rows], success[rows] = found.pixels, found.success
            passes += found.passes
        return Found(pixels, success, passes)
