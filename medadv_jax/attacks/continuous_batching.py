"""A queue of attacks on images, run by one compiled step: continuous batching.

`run_attacks` runs every attack on every image, and compiles a program for each list of attacks.
Curves and self-checks ask for many radii, numbers of steps, restarts and losses, of which most
images need a step or two. Here each row of the batch is a slot: one image under one attack, whose
numbers are arguments of the program. A slot is given to the next in the queue as soon as its image
is misclassified or has had its steps.

Start, step and balls are those of `lanes.py`, so that results equal those of `run_attacks` with
`early_stop`, up to rounding.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks.inputs import check_images, check_logits
from medadv_jax.attacks.lanes import (
    LaneNumbers,
    LaneState,
    Score,
    accumulate,
    choose_rows,
    initial_state,
    needs_momentum,
    random_start,
    step_example,
)
from medadv_jax.attacks.losses import LOSSES
from medadv_jax.attacks.restriction import FREE, Restriction, make_ball
from medadv_jax.attacks.spec import AttackSpec

# (variables, pixels (N, H, W, C), kind of gradient) -> logits (N, K)
VariablesLogitsFn = Callable[[Any, jax.Array, str], jax.Array]
_Geometry = tuple[str, Restriction]  # arguments of `make_ball`


class AttackJob(NamedTuple):
    """An attack on some of the images.

    Attributes:
      attack: untargeted, of the queue's norm; with `keep_best` it stops at the first point that
        is misclassified.
      temperature: what logits are divided by.
      shift: (n,) float32, subtracted from the logit of each image's own class, which moves the
        decision boundary.
      active: (n,) bool, the images to attack; None: all.
    """

    attack: AttackSpec
    temperature: float = 1.0
    shift: np.ndarray | None = None
    active: np.ndarray | None = None


class Gradients(NamedTuple):
    """Of the attacked loss at points (N, H, W, C)."""

    gradient: Any  # (N, H, W, C)
    success: Any  # (N,) bool: misclassified?
    loss: Any  # (N,) float32


class _LossNumbers(NamedTuple):
    """What may differ between the losses of slots; each (), or (N,) stacked."""

    margin: Any = False  # bool: margin loss, not cross-entropy
    temperature: Any = 1.0
    shift: Any = 0.0


class _StartNumbers(NamedTuple):
    """What may differ between the starts of slots; each (), or (N,) stacked."""

    epsilon: Any = 0.0
    restart: Any = 0  # number of the random start
    random_start: Any = False  # bool


class _SlotNumbers(NamedTuple):
    """What may differ between slots."""

    loss: _LossNumbers = _LossNumbers()
    start: _StartNumbers = _StartNumbers()
    step: LaneNumbers = LaneNumbers(epsilon=0.0, step_size=0.0, decay=0.0)


class _Task(NamedTuple):
    """One image under one random start of a job."""

    job: int
    image: int
    attack: AttackSpec
    numbers: _SlotNumbers


class AttackQueue:
    """Compiled programs: one for each kind of gradient, and the start and step that all share.

    Args of the constructor:
      logits_fn: (variables, pixels, gradient) -> logits; treats every image alone.
      slots: N, images at a time.
      norm: of balls and steps.
      put: places a tree of arrays on the devices, split along their first axes.
      fold: variables -> those of `logits_fn`, called once per call; see `Classifier.fold`.

    Attributes:
      passes: gradients taken in all runs so far, summed over images.
    """

    def __init__(
        self,
        logits_fn: VariablesLogitsFn,
        slots: int,
        norm: str = "linf",
        put: Callable[[Any], Any] = jax.device_put,
        fold: Callable[[Any], Any] = lambda variables: variables,
    ):
        self.slots, self.norm, self.put, self._fold = slots, norm, put, fold
        self.passes = 0
        self._gradients = jax.jit(
            functools.partial(_gradients, logits_fn),
            static_argnames=("gradient", "restriction"),
        )

    def gradients(
        self, variables: Any, points: np.ndarray, labels: np.ndarray, gradient: str
    ) -> Gradients:
        """Returns cross-entropy and its gradient at points (N, H, W, C), on the host."""
        numbers = _stack([_LossNumbers()] * len(points))
        found = self._gradients(
            self._fold(variables),
            *self.put((points, labels.astype(np.int32), numbers)),
            gradient=gradient,
            restriction=FREE,
        )
        return Gradients(*jax.device_get(found))

    def starts(
        self,
        images: np.ndarray,
        epsilon: float,
        restart: int,
        key: jax.Array,
        restriction: Restriction = FREE,
    ) -> np.ndarray:
        """Returns random points (N, H, W, C) of the balls around N images, one for each."""
        numbers = _stack([_StartNumbers(float(epsilon), restart, True)] * len(images))
        everything = np.ones(len(images), bool)
        arguments = self.put((images, numbers, everything))
        geometry = (self.norm, restriction)
        rows = _start(*arguments, key, None, geometry=geometry, with_momentum=False)
        return np.asarray(rows.state.point)

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
          jobs: J of them, of one restriction.
          key: of the random starts.
          gradient: the kind of gradient, handed to `logits_fn`.
          advance: told the number of finished runs, each of one image under one random start.

        Returns:
          (J, n, H, W, C) float32 in [0, 1]; images that a job leaves out are unchanged.
        """
        check_images(images, labels)
        restriction, variables = _shared_restriction(jobs), self._fold(variables)
        geometry = (self.norm, restriction)
        results = np.repeat(images[None], len(jobs), axis=0)
        best = np.full(results.shape[:2], -np.inf)  # loss; infinite where misclassified
        slots = _SlotTable(self.slots, images, labels, _tasks(jobs, len(images)))
        with_momentum = any(needs_momentum(job.attack) for job in jobs)
        rows: Any = None
        numbers = centres = targets = None
        while slots.assign_tasks():
            if slots.fresh.any():
                centres, targets, numbers = self.put(slots.arrays())
                fresh = self.put(slots.fresh)
                rows = _start(
                    centres, numbers.start, fresh, key, rows,
                    geometry=geometry, with_momentum=with_momentum,
                )  # fmt: skip
            before = rows.state
            found = self._gradients(
                variables, before.point, targets, numbers.loss, gradient=gradient,
                restriction=restriction,
            )  # fmt: skip
            self.passes += sum(task is not None for task in slots.tasks)
            finished = slots.count_gradient(np.asarray(found.success))
            rows = _step(rows, found, numbers.step, centres, geometry=geometry)
            if finished:
                advance(len(finished))
                _collect(results, best, slots, finished, before, rows.state)
        return results


class _SlotTable:
    """Which task each row of the batch runs; a row without a task keeps its last image."""

    def __init__(self, count: int, images: np.ndarray, labels: np.ndarray, queue: Iterator[_Task]):
        self._images, self._labels, self._queue = images, labels, queue
        self.tasks: list[_Task | None] = [None] * count
        self.fresh = np.zeros(count, bool)  # rows that have just been given a task
        self._gradients = np.zeros(count, int)  # taken for the row's task
        self._row_images = np.zeros((count, *images.shape[1:]), np.float32)
        self._row_labels = np.zeros(count, np.int32)
        self._numbers = [_SlotNumbers()] * count

    def assign_tasks(self) -> bool:
        """Gives the next tasks to free rows; returns whether any row has a task."""
        self.fresh[:] = False
        for slot, task in enumerate(self.tasks):
            if task is None and (task := next(self._queue, None)) is not None:
                self.tasks[slot], self.fresh[slot], self._gradients[slot] = task, True, 0
                self._row_images[slot] = self._images[task.image]
                self._row_labels[slot] = self._labels[task.image]
                self._numbers[slot] = task.numbers
        return any(task is not None for task in self.tasks)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, _SlotNumbers]:
        """Returns images, labels and numbers of all rows; copies, as devices may alias them."""
        return self._row_images.copy(), self._row_labels.copy(), _stack(self._numbers)

    def count_gradient(self, success: np.ndarray) -> list[int]:
        """Counts a gradient of every row; returns the rows whose tasks are finished."""
        self._gradients += 1
        finished = []
        for slot, task in enumerate(self.tasks):
            if task is None:
                continue
            # The gradient after the last step is there for its loss.
            over = self._gradients[slot] > task.attack.num_steps
            if over or (task.attack.keep_best and success[slot]):
                finished.append(slot)
        return finished


def _collect(
    results: np.ndarray,
    best: np.ndarray,
    slots: _SlotTable,
    finished: Sequence[int],
    before: LaneState,
    after: LaneState,
) -> None:
    """Writes what finished rows found into `results`, where it beats an earlier random start.

    The last point is that before the last step; its score is only in the state after it.
    """
    strongest, points = np.asarray(after.best), np.asarray(before.point)
    success, loss = np.asarray(after.success), np.asarray(after.loss, np.float64)
    for slot in finished:
        task = slots.tasks[slot]
        assert task is not None
        place = task.job, task.image
        value = np.inf if success[slot] else loss[slot]
        if value > best[place] or best[place] == -np.inf:
            best[place] = value
            results[place] = strongest[slot] if task.attack.keep_best else points[slot]
        slots.tasks[slot] = None


def _shared_restriction(jobs: Sequence[AttackJob]) -> Restriction:
    """Returns the restriction of all jobs; ValueError if they differ."""
    found = {job.attack.restriction for job in jobs} or {FREE}
    if len(found) > 1:
        raise ValueError(f"jobs of one call share a restriction; got {sorted(found)}")
    return found.pop()


def _tasks(jobs: Sequence[AttackJob], count: int) -> Iterator[_Task]:
    for number, job in enumerate(jobs):
        for restart in range(job.attack.num_restarts):
            for image in range(count):
                if job.active is None or job.active[image]:
                    yield _Task(number, image, job.attack, _task_numbers(job, image, restart))


def _task_numbers(job: AttackJob, image: int, restart: int) -> _SlotNumbers:
    attack, epsilon = job.attack, float(job.attack.epsilon)
    shift = 0.0 if job.shift is None else float(job.shift[image])
    return _SlotNumbers(
        _LossNumbers(attack.loss == "margin", float(job.temperature), shift),
        _StartNumbers(epsilon, restart, attack.random_start),
        LaneNumbers(epsilon, float(attack.step_size), float(attack.decay)),
    )


def _stack(rows: Sequence[Any]) -> Any:
    """Returns one tree of arrays (N,) from N trees of Python numbers."""
    types = {float: np.float32, int: np.int32, bool: np.bool_}
    return jax.tree.map(lambda *column: np.array(column, types[type(column[0])]), *rows)


def _gradients(
    logits_fn: VariablesLogitsFn,
    variables: Any,
    points: jax.Array,
    labels: jax.Array,
    numbers: _LossNumbers,
    gradient: str,
    restriction: Restriction,
) -> Gradients:
    def total(points: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        points = restriction.restrict_gradient(points)
        logits = check_logits(lambda pixels: logits_fn(variables, pixels, gradient), labels)(
            points
        ).astype(jnp.float32)
        own = jax.nn.one_hot(labels, logits.shape[-1])
        logits = (logits - own * numbers.shift[:, None]) / numbers.temperature[:, None]
        losses = {name: function(logits, labels) for name, function in LOSSES.items()}
        loss = jnp.where(numbers.margin, losses["margin"], losses["cross_entropy"])
        return jnp.sum(loss), (jnp.argmax(logits, axis=-1) != labels, loss)

    value, (success, loss) = jax.grad(total, has_aux=True)(points)
    return Gradients(value, success, loss)


class _Rows(NamedTuple):
    """Where the attacks of all rows stand."""

    state: LaneState
    momentum: jax.Array | None  # (N, H, W, C); None if no job needs it


# Start and step contain no network: compiled once for all queues of a shape.
@functools.partial(jax.jit, static_argnames=("geometry", "with_momentum"))
def _start(
    images: jax.Array,
    numbers: _StartNumbers,
    fresh: jax.Array,
    key: jax.Array,
    rows: _Rows | None,
    *,
    geometry: _Geometry,
    with_momentum: bool,
) -> _Rows:
    """Returns the rows (N, …), with those of `fresh` at their starts."""

    def start(image: jax.Array, own: _StartNumbers) -> _Rows:
        draw_key = jax.random.fold_in(key, own.restart)
        drawn = random_start(draw_key, make_ball(*geometry), image, own.epsilon)
        state = initial_state(jnp.where(own.random_start, drawn, image))
        return _Rows(state, jnp.zeros_like(image) if with_momentum else None)

    first = jax.vmap(start)(images, numbers)
    return first if rows is None else choose_rows(fresh, first, rows)


@functools.partial(jax.jit, static_argnames="geometry")
def _step(
    rows: _Rows,
    found: Gradients,
    numbers: LaneNumbers,
    images: jax.Array,
    *,
    geometry: _Geometry,
) -> _Rows:
    """Moves every row by one step, keeping the strongest point visited."""

    def step(row: _Rows, found: Gradients, own: LaneNumbers, image: jax.Array) -> _Rows:
        score, ascent, momentum = Score(found.success, found.loss), found.gradient, row.momentum
        if momentum is not None:
            ascent = momentum = accumulate(own.decay, momentum, ascent)
        # Rows whose images are misclassified leave the batch, so none has to wait in place.
        state = step_example(
            make_ball(*geometry), own, row.state, score, ascent, image, can_stop=False
        )
        return _Rows(state, momentum)

    return jax.vmap(step)(rows, found, numbers, images)
