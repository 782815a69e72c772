"""The training loop of one classifier: epochs, curves, checkpoints."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medadv_jax.checkpoint import Checkpoints
from medadv_jax.classifier import Variables
from medadv_jax.config import Config
from medadv_jax.defenses import Defense
from medadv_jax.errors import UserError
from medadv_jax.progress import StageProgress
from medadv_jax.train_step import Batch, Metrics, TrainState, put_batch
from medadv_jax.writers import MetricsWriter


class _EpochMeter:
    """Metrics of an epoch, fetched one step late, so that the device never waits for the host."""

    def __init__(self, stop_on: Callable[[int], UserError]):
        self._stop_on = stop_on
        self._pending: tuple[int, Metrics] | None = None
        self._rows: list[dict[str, float]] = []

    def add(self, step: int, metrics: Metrics) -> dict[str, float] | None:
        """Takes the metrics of `step`, returns those of the step before; raises if its loss is
        not finite."""
        row = self.flush()
        self._pending = (step, metrics)
        return row

    def flush(self) -> dict[str, float] | None:
        """Fetches what is pending."""
        if self._pending is None:
            return None
        step, metrics = self._pending
        self._pending = None
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(row["loss"]):
            raise self._stop_on(step)
        self._rows.append(row)
        return row

    def means(self) -> dict[str, float]:
        """Returns the epoch's means over examples."""
        self.flush()
        counts = np.array([row["count"] for row in self._rows])
        names = [name for name in self._rows[0] if name != "count"]
        return {n: float(np.average([r[n] for r in self._rows], weights=counts)) for n in names}


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The loop around the step, for one defence.

    Attributes:
      config: the run's config.
      defense: what is trained, for names.
      train_step: from `make_train_step`.
      make_epoch: epoch (from 0) -> its batches on the host, of one shape.
      validate: variables -> {"accuracy", "loss"}, which choose the best checkpoint.
      checkpoints: where states go after each epoch.
      writer: for the curves.
      progress: for the person who waits.
      mesh: the devices.
      frozen: the variables that the step leaves alone.
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

    @property
    def epochs(self) -> int:
        """The number of epochs of this defence."""
        return self.defense.training(self.config).epochs

    def fit(self, state: TrainState) -> None:
        """Trains to the last epoch, going on from the newest checkpoint.

        Args:
          state: the state before the first step; donated.

        Raises:
          UserError: a loss that is not finite; names the step and the last good checkpoint.
        """
        replicated = NamedSharding(self.mesh, PartitionSpec())
        key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        key = jax.device_put(key, replicated)
        first, epochs = self.checkpoints.latest(), self.epochs
        if first:
            state = self.checkpoints.restore(first, state)
            self.progress.line(f"going on after epoch {first}")
        for epoch in range(first, epochs):
            state, row = self._train_epoch(state, key, epoch)
            validation = self.validate(state.variables(self.frozen))
            self.checkpoints.save(epoch + 1, state, validation)
            row |= {f"validation_{name}": value for name, value in validation.items()}
            self.writer.write(self.defense.name, int(state.step), {"epoch": epoch + 1, **row})
            text = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
            self.progress.line(f"epoch {epoch + 1}/{epochs}  {text}")

    def _train_epoch(
        self, state: TrainState, key: jax.Array, epoch: int
    ) -> tuple[TrainState, dict[str, float]]:
        """Runs one epoch; returns the state and the epoch's means, with images/s."""
        meter = _EpochMeter(lambda step: self._not_finite(step, epoch))
        step, images, start = int(state.step), 0, time.monotonic()
        for count, batch in enumerate(self.make_epoch(epoch)):
            state, metrics = self.train_step(state, put_batch(self.mesh, batch), key, self.frozen)
            row = meter.add(step + 1, metrics)
            if row and step % self.config.train.log_steps == 0:
                self.writer.write(self.defense.name, step, {"epoch": epoch + 1, **row})
            step += 1
            size = int(batch["mask"].sum())
            if count == 0:  # the first step of a run compiles: it is not timed
                jax.block_until_ready(metrics)
                start = time.monotonic()
            else:
                images += size
            self.progress.advance(size, f"epoch {epoch + 1}/{self.epochs}")
        means = meter.means()
        if images:
            means["images/s"] = images / (time.monotonic() - start)
        return state, means

    def _not_finite(self, step: int, epoch: int) -> UserError:
        last = self.checkpoints.latest()
        good = f"{self.checkpoints.folder}/{last}" if last else "none"
        rate = self.defense.training(self.config).learning_rate
        return UserError(
            f"{self.defense.name}: the loss is not finite at step {step} (epoch {epoch + 1});"
            f" last good checkpoint: {good}; try a smaller learning rate than {rate}"
        )
