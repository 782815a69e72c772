"""The training loop of one classifier: epochs, curves, checkpoints."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from medadv_jax import interrupts
from medadv_jax.classifier import Variables
from medadv_jax.config import Config
from medadv_jax.defenses import Defense
from medadv_jax.distributed import Batch, SaveTogether, any_process, make_key, put_batch
from medadv_jax.errors import UserError
from medadv_jax.evaluation.checks.overfitting_check import FAR, accuracy_drop
from medadv_jax.progress import StageProgress
from medadv_jax.training.checkpoints import Checkpoints
from medadv_jax.training.metric_writer import MetricsWriter
from medadv_jax.training.state import TrainState
from medadv_jax.training.step import Metrics

Row = dict[str, float]


class _EpochMeter:
    """Metrics of an epoch, fetched one step late, so that the device never waits for the host.

    Attributes:
      rows: metrics of the epoch's steps so far, including those of an earlier process.
    """

    def __init__(self, rows: list[Row], on_row: Callable[[int, Row], None]):
        self.rows, self._on_row = rows, on_row
        self._pending: tuple[int, Metrics] | None = None

    def add(self, step: int, metrics: Metrics) -> None:
        """Keeps the metrics of `step` for later, and fetches those of the step before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Fetches the metrics that are pending."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._on_row(step, row)
        self.rows.append(row)

    def means(self) -> Row:
        """Returns the means over the epoch's examples."""
        self.flush()
        counts = np.array([row["count"] for row in self.rows])
        names = [name for name in self.rows[0] if name != "count"]
        return {n: float(np.average([r[n] for r in self.rows], weights=counts)) for n in names}


class _Speed:
    """Images per second, without the first step of an epoch, which may include compilation."""

    def __init__(self):
        self._images, self._start = -1, 0.0

    def count(self, images: int, metrics: Metrics) -> None:
        """Counts a step's images; waits for the first step."""
        if self._images < 0:
            jax.block_until_ready(metrics)
            self._images, self._start = 0, time.monotonic()
        else:
            self._images += images

    def row(self) -> Row:
        """Returns {"images/s"}, or nothing after fewer than two steps."""
        if self._images <= 0:
            return {}
        return {"images/s": self._images / (time.monotonic() - self._start)}


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The loop around the step, for one defence.

    Attributes:
      config: the run's config.
      defense: the defence that is trained.
      train_step: from `make_train_step`.
      make_epoch: epoch (from 0) -> its batches on the host, of one shape.
      validate: variables -> {"accuracy", "loss"}, which choose the best checkpoint, and what else
        was measured.
      checkpoints: stores states after each epoch, and when the process is asked to stop.
      writer: writes the training curves.
      progress: shown to the user.
      mesh: the devices.
      frozen: the variables that the step does not change.
      updates: updates of the parameters in a call of `train_step`; all of them are counted.
    """

    config: Config
    defense: Defense
    train_step: Callable[..., tuple[TrainState, Metrics]]
    make_epoch: Callable[[int], Iterator[Batch]]
    validate: Callable[[Variables], dict[str, float]]
    checkpoints: Checkpoints
    writer: MetricsWriter
    progress: StageProgress
    mesh: Mesh
    frozen: Variables = dataclasses.field(default_factory=dict)
    updates: int = 1

    @property
    def epochs(self) -> int:
        """The number of epochs of this defence."""
        return self.defense.training(self.config).epochs

    def fit(self, state: TrainState) -> None:
        """Trains to the last epoch, resuming where an earlier process stopped.

        With 0 epochs the state is validated and saved as it is.

        Args:
          state: the state before the first step; donated.

        Raises:
          UserError: a loss that is not finite; names the step and the last good checkpoint.
          Stopped: the process was asked to stop; state and position are saved.
        """
        key = make_key(self.mesh, self.config.seed, 1)
        state, first, rows = self._go_on(state)
        self.writer.rewind(self.defense.name, int(state.step))
        if jax.process_count() > 1:
            interrupts.defer()  # alone, it would leave the others waiting
        try:
            if not self.epochs:
                self._end_epoch(state, 0, {}, [])
            for epoch in range(first, self.epochs):
                state, row = self._train_epoch(state, key, epoch, rows)
                self._end_epoch(state, epoch + 1, row, rows)
                rows = []
        finally:
            interrupts.heed()
        self.checkpoints.drop_partial()
        self._check_stop(f"all {self.epochs} epochs done")

    def _go_on(self, state: TrainState) -> tuple[TrainState, int, list[Row]]:
        """Returns the newest state, the epoch it is in, and the rows of that epoch so far."""
        first, partial = self.checkpoints.latest(), self.checkpoints.restore_partial(state)
        if partial and partial[1]["epoch"] >= first:
            state, position = partial
            first, rows = position["epoch"], position["rows"]
            self.progress.line(f"going on within epoch {first + 1}, after {len(rows)} steps")
            self.progress.skip(len(rows) * self.config.train.batch_size)
            return state, first, rows
        if first:
            state = self.checkpoints.restore(first, state)
            self.progress.line(f"going on after epoch {first}")
        return state, first, []

    def _train_epoch(
        self, state: TrainState, key: jax.Array, epoch: int, rows: list[Row]
    ) -> tuple[TrainState, Row]:
        """Runs the rest of one epoch; returns the state and the epoch's means, with images/s.

        `rows` holds the metrics of each step that is done; those of the others are added.
        """
        meter = _EpochMeter(rows, lambda step, row: self._take(step, epoch, row))
        step, speed, saved = int(state.step), _Speed(), time.monotonic()
        together = SaveTogether(self.mesh)
        for batch in itertools.islice(self.make_epoch(epoch), len(rows), None):
            state, metrics = self.train_step(state, put_batch(self.mesh, batch), key, self.frozen)
            step += self.updates
            meter.add(step, metrics)
            size = int(batch["mask"].sum()) * jax.process_count()  # without padding
            speed.count(size, metrics)
            interrupts.defer()  # before the first step is done there is nothing to save
            self.progress.advance(size, f"epoch {epoch + 1}/{self.epochs}")
            if together.ask(self._is_due(saved)):
                meter.flush()
                self._keep(state, epoch, rows)
                saved = time.monotonic()
        return state, meter.means() | speed.row()

    def _end_epoch(self, state: TrainState, epochs: int, row: Row, rows: list[Row]) -> None:
        """Validates after `epochs` epochs, writes a line, and saves a checkpoint, in this order:
        every checkpoint has its line, and a line without a checkpoint is dropped on resuming."""
        try:
            validation = self.validate(state.deployed(self.frozen))
        except interrupts.Stopped:
            if rows:
                self._keep(state, epochs - 1, rows)
            raise
        if not math.isfinite(validation["loss"]):
            raise self._not_finite("validation loss", int(state.step), epochs)
        prefix = "validation_adversarial_" if self.defense.chosen_under else "validation_"
        row = {**row, **{f"{prefix}{name}": value for name, value in validation.items()}}
        self.writer.write(self.defense.name, int(state.step), {"epoch": epochs, **row})
        self.writer.flush()
        self.checkpoints.save(epochs, state, validation)
        text = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        self.progress.line(f"epoch {epochs}/{self.epochs}  {text}")
        if accuracy_drop(row) > FAR:
            self.progress.line("warning: catastrophic overfitting: PGD is far stronger than FGSM")
        if epochs < self.epochs:
            self._check_stop(f"after epoch {epochs}")

    def _keep(self, state: TrainState, epoch: int, rows: list[Row]) -> None:
        """Saves a state within an epoch with its position; raises Stopped if any process must."""
        self.writer.flush()
        self.checkpoints.save_partial(state, {"epoch": epoch, "rows": rows})
        self._check_stop(f"epoch {epoch + 1}, after {len(rows)} steps")

    def _is_due(self, saved: float) -> bool:
        """Returns whether this process wants to save within an epoch."""
        minutes = self.config.train.checkpoint_minutes
        passed = bool(minutes) and time.monotonic() - saved > 60 * minutes
        return passed or interrupts.requested()

    def _check_stop(self, where: str) -> None:
        """Raises Stopped if any process was asked to stop."""
        if any_process(interrupts.requested()):
            interrupts.request()
        interrupts.check(f"train {self.defense.name}, {where}")

    def _take(self, step: int, epoch: int, row: Row) -> None:
        """Writes the metrics of a step if due; raises UserError if its loss is not finite."""
        if not math.isfinite(row["loss"]):
            raise self._not_finite("loss", step, epoch + 1)
        if step % self.config.train.log_steps == 0:
            self.writer.write(self.defense.name, step, {"epoch": epoch + 1, **row})

    def _not_finite(self, what: str, step: int, number: int) -> UserError:
        last = self.checkpoints.latest()
        good = f"{self.checkpoints.folder}/{last}" if last else "none"
        rate = self.defense.training(self.config).learning_rate
        return UserError(
            f"{self.defense.name}: the {what} is not finite at step {step} (epoch {number});"
            f" last good checkpoint: {good}; try a smaller learning rate than {rate}"
        )
