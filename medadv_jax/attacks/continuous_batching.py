"""Many attacks on many images through one compiled step: each image its own radius and step.

`run_attacks` gives every image every attack, and a program of their own to each list of attacks.
A sweep over radii, numbers of steps, restarts and losses asks for few gradients of each: most
images fall within a step or two. Here every slot of a batch is an image under an attack of its
own, whose numbers are arguments of the program; a slot whose image has fallen, or has had its
steps, goes to the next in the queue. The step, the balls and the random starts are those of
`attacks/loop.py`, so that the results are those of `run_attacks` with `early_stop`, to rounding.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks import lanes as parts
from medadv_jax.attacks.losses import LOSSES
from medadv_jax.attacks.spec import AttackSpec

# (variables, pixels (N, H, W, C), a word of the caller's) -> logits (N, K)
LogitsFn = Callable[[Any, jax.Array, str], jax.Array]


class AttackJob(NamedTuple):
    """An attack on some of the images.

    Attributes:
      attack: untargeted, of the sweep's norm; with `keep_best` it stops at the first point that
        is misclassified.
      temperature: what logits are divided by.
      shift: (n,) float32, taken from each image's own logit: where the boundary is moved to.
      active: (n,) bool, the images to attack; None: all.
    """

    attack: AttackSpec
    temperature: float = 1.0
    shift: np.ndarray | None = None
    active: np.ndarray | None = None


class Numbers(NamedTuple):
    """What may differ between slots, (N,) each."""

    epsilon: Any
    step_size: Any
    decay: Any
    restart: Any  # number of the random start
    random_start: Any  # bool
    margin: Any  # bool: margin loss, not cross-entropy
    temperature: Any
    shift: Any


class Gradients(NamedTuple):
    """Of the attacked loss at points (N, H, W, C)."""

    gradient: Any  # (N, H, W, C)
    success: Any  # (N,) bool: misclassified?
    loss: Any  # (N,) float32


class _Item(NamedTuple):
    """An image under one random start of a job."""

    job: int
    image: int
    attack: AttackSpec
    numbers: Numbers


class AttackQueue:
    """Compiled programs: a gradient for each word, and the move that they share.

    Args of the constructor:
      logits_fn: (variables, pixels, word) -> logits; treats every image alone.
      slots: N, images at a time.
      norm: of balls and steps.
      put: places a tree of arrays on the devices, split along their first axes.
      fold: variables -> those of `logits_fn`, once for each call; see `Classifier.fold`.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        slots: int,
        norm: str = "linf",
        put: Callable[[Any], Any] = jax.device_put,
        fold: Callable[[Any], Any] = lambda variables: variables,
    ):
        self.slots, self.norm, self.put, self._fold = slots, norm, put, fold
        self._gradients = jax.jit(
            functools.partial(_gradients, logits_fn), static_argnames="gradient"
        )

    def gradients(
        self, variables: Any, points: np.ndarray, labels: np.ndarray, gradient: str
    ) -> Gradients:
        """Returns loss and gradient at points (N, H, W, C) as an attack sees them, on the host."""
        numbers = _stack([_numbers(AttackJob(AttackSpec("", 0.0, 0.0, 1)), 0, 0)] * len(points))
        found = self._gradients(
            self._fold(variables),
            *self.put((points, labels.astype(np.int32), numbers)),
            gradient=gradient,
        )
        return Gradients(*jax.device_get(found))

    def starts(
        self, images: np.ndarray, labels: np.ndarray, epsilon: float, restart: int, key: jax.Array
    ) -> np.ndarray:
        """Returns random points (N, H, W, C) of the balls around N images: noise."""
        attack = AttackSpec("noise", epsilon, 0.0, 1, random_start=True)
        numbers = _stack([_numbers(AttackJob(attack), 0, restart)] * len(images))
        everything = np.ones(len(images), bool)
        arguments = self.put((images, labels.astype(np.int32), numbers, everything))
        return np.asarray(_start(*arguments, key, None, norm=self.norm).point)

    def run(
        self,
        variables: Any,
        images: np.ndarray,
        labels: np.ndarray,
        jobs: Sequence[AttackJob],
        key: jax.Array,
        gradient: str = "full",
        advance: Callable[[int], None] = lambda runs: None,
    ) -> np.ndarray:
        """Runs all jobs.

        Args:
          variables: of the classifier.
          images: (n, H, W, C) float32 in [0, 1], any n.
          labels: (n,) integer.
          jobs: J of them.
          key: of the random starts.
          gradient: the word for `logits_fn`.
          advance: told the number of finished runs, each of one image under one random start.

        Returns:
          (J, n, H, W, C) float32 in [0, 1]; images that a job leaves out are as they were.
        """
        variables = self._fold(variables)
        results = np.repeat(images[None], len(jobs), axis=0)
        best = np.full(results.shape[:2], -np.inf)  # loss, misclassified ones above all others
        slots = _Slots(self.slots, images, labels, _items(jobs, len(images)))
        state, numbers, points = None, None, None
        while slots.fill():
            if slots.fresh.any():
                numbers, points = slots.arrays()
                points, targets, numbers = self.put((points, slots.labels, numbers))
                fresh = self.put(slots.fresh)
                state = _start(points, targets, numbers, fresh, key, state, norm=self.norm)
            found = self._gradients(variables, state.point, targets, numbers, gradient=gradient)
            done = slots.advance(np.asarray(found.success))
            previous, state = state, _move(state, found, numbers, points, targets, norm=self.norm)
            if done:
                advance(len(done))
                _collect(results, best, slots, done, previous, state)
        return results


def _collect(results: Any, best: Any, slots: "_Slots", done: list[int], before: Any, after: Any):
    """Writes what finished slots found into `results`, where it beats an earlier random start.

    `after` the move, `best` knows the last point too; the point itself is that before it.
    """
    strongest, points = np.asarray(after.best), np.asarray(before.point)
    success, loss = np.asarray(after.success), np.asarray(after.loss, np.float64)
    for slot in done:
        item = slots.items[slot]
        assert item is not None
        place = item.job, item.image
        value = np.inf if success[slot] else loss[slot]
        if value > best[place] or best[place] == -np.inf:
            best[place] = value
            results[place] = strongest[slot] if item.attack.keep_best else points[slot]
        slots.items[slot] = None


class _Slots:
    """Who sits in which row of the batch. Empty rows hold the last image that sat there."""

    def __init__(self, count: int, images: np.ndarray, labels: np.ndarray, queue: Iterator[_Item]):
        self._images, self._labels, self._queue = images, labels, queue
        self.items: list[_Item | None] = [None] * count
        self.labels = np.zeros(count, np.int32)
        self.fresh = np.zeros(count, bool)
        self._steps = np.zeros(count, int)  # gradients taken
        self._points = np.zeros((count, *images.shape[1:]), np.float32)
        self._numbers = [_numbers(AttackJob(AttackSpec("", 0.0, 0.0, 1)), 0, 0)] * count

    def fill(self) -> bool:
        """Seats the next ones in free rows; returns whether anybody is left."""
        self.fresh[:] = False
        for slot, item in enumerate(self.items):
            if item is None and (item := next(self._queue, None)) is not None:
                self.items[slot], self.fresh[slot], self._steps[slot] = item, True, 0
                self._points[slot] = self._images[item.image]
                self.labels[slot] = self._labels[item.image]
                self._numbers[slot] = item.numbers
        return any(item is not None for item in self.items)

    def arrays(self) -> tuple[Numbers, np.ndarray]:
        """Returns the numbers and the images of all rows; copies, as devices may alias them."""
        return _stack(self._numbers), self._points.copy()

    def advance(self, success: np.ndarray) -> list[int]:
        """Counts a gradient of every row; returns the rows that have finished by it."""
        self._steps += 1
        done = []
        for slot, item in enumerate(self.items):
            if item is None:
                continue
            # The gradient after the last step is there for its loss.
            over = self._steps[slot] > item.attack.num_steps
            if over or (item.attack.keep_best and success[slot]):
                done.append(slot)
        return done


def _items(jobs: Sequence[AttackJob], count: int) -> Iterator[_Item]:
    for number, job in enumerate(jobs):
        for restart in range(job.attack.num_restarts):
            for image in range(count):
                if job.active is None or job.active[image]:
                    yield _Item(number, image, job.attack, _numbers(job, image, restart))


def _numbers(job: AttackJob, image: int, restart: int) -> Numbers:
    attack, shift = job.attack, 0.0 if job.shift is None else float(job.shift[image])
    return Numbers(
        float(attack.epsilon), float(attack.step_size), float(attack.decay), restart,
        attack.random_start, attack.loss == "margin", float(job.temperature), shift,
    )  # fmt: skip


def _stack(rows: Sequence[Numbers]) -> Numbers:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    types = {"f": np.float32, "i": np.int32, "b": np.bool_}
    return Numbers(*(column.astype(types[column.dtype.kind]) for column in columns))


def _gradients(
    logits_fn: LogitsFn,
    variables: Any,
    points: jax.Array,
    labels: jax.Array,
    numbers: Numbers,
    gradient: str,
) -> Gradients:
    def total(points: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = logits_fn(variables, points, gradient).astype(jnp.float32)
        own = jax.nn.one_hot(labels, logits.shape[-1])
        logits = (logits - own * numbers.shift[:, None]) / numbers.temperature[:, None]
        losses = {name: function(logits, labels) for name, function in LOSSES.items()}
        loss = jnp.where(numbers.margin, losses["margin"], losses["cross_entropy"])
        return jnp.sum(loss), (jnp.argmax(logits, axis=-1) != labels, loss)

    value, (success, loss) = jax.grad(total, has_aux=True)(points)
    return Gradients(value, success, loss)


# Of no network, and so compiled once for all sweeps of a shape.
@functools.partial(jax.jit, static_argnames="norm")
def _start(
    images: jax.Array,
    labels: jax.Array,
    numbers: Numbers,
    fresh: jax.Array,
    key: jax.Array,
    state: Any,
    *,
    norm: str,
) -> Any:
    """Returns the state, rows (N, …), with those of `fresh` at their starts."""

    def start(image: jax.Array, label: jax.Array, own: Numbers) -> Any:
        attack = AttackSpec("", own.epsilon, 0.0, 1, random_start=True, norm=norm)
        plan = parts.plan_lanes([attack])._replace(restarts=[own.restart])
        first, _, _ = parts.begin(plan, image[None, None], label[None, None], key)
        first = jax.tree.map(lambda x: x[0, 0], first)
        point = jnp.where(own.random_start, first.point, image)
        return first._replace(point=point, best=point)

    first = jax.vmap(start)(images, labels, numbers)
    if state is None:
        return first

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(fresh.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, first, state)


@functools.partial(jax.jit, static_argnames="norm")
def _move(
    state: Any,
    found: Gradients,
    numbers: Numbers,
    images: jax.Array,
    labels: jax.Array,
    *,
    norm: str,
) -> Any:
    """One step of every row, which is a batch of its own in the loop's eyes."""

    def move(state: Any, found: Gradients, own: Numbers, image: jax.Array, label: jax.Array) -> Any:
        def score_fn(point: jax.Array, label: jax.Array) -> tuple[jax.Array, Any]:
            del label  # a linear function with the gradient that is known already
            score = (found.success[None, None], found.loss[None, None])
            return jnp.sum(point * found.gradient[None, None]), score

        attack = AttackSpec(
            "", own.epsilon, own.step_size, 1, decay=own.decay, norm=norm, keep_best=True
        )
        plan = parts.plan_lanes([attack])
        state, image, label = jax.tree.map(lambda x: x[None, None], (state, image, label))
        step = parts.make_step(plan, score_fn)
        moved = parts.run_segments(plan, step, state, image, label, "fori_loop")
        return jax.tree.map(lambda x: x[0, 0], moved)

    return jax.vmap(move)(state, found, numbers, images, labels)
