"""Checkpoints of one defence: the newest, to go on from, and the best, to evaluate. Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy


def _rank(metrics: Any) -> float:
    """Orders checkpoints: validation accuracy first, and among equals the lower loss."""
    # The second term stays under one example's share for up to a million examples.
    return metrics["accuracy"] + 1e-6 / (1 + metrics["loss"])


class Checkpoints:
    """The folder `checkpoints/<defense>/`; a step is the number of epochs trained.

    Orbax writes beside and renames, so that a folder named by a number is a whole checkpoint.
    """

    def __init__(self, folder: Path):
        options = ocp.CheckpointManagerOptions(
            best_fn=_rank,  # without it no metrics are stored
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [
                    preservation_policy.LatestN(1),
                    preservation_policy.BestN(get_metric_fn=_rank, n=1),
                ]
            ),
            cleanup_tmp_directories=True,
        )
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, epochs: int, state: Any, metrics: dict[str, float]) -> None:
        """Stores a state after `epochs` epochs with its validation `accuracy` and `loss`."""
        self._manager.save(epochs, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

    def latest(self) -> int:
        """Returns the number of epochs of the newest checkpoint, 0 if there is none."""
        return self._manager.latest_step() or 0

    def best(self) -> tuple[int, dict[str, float]]:
        """Returns epochs and metrics of the best checkpoint; KeyError if there is none."""
        self._manager.wait_until_finished()
        steps = self._manager.all_steps()
        metrics: dict[int, Any] = {step: self._manager.metrics(step) for step in steps}
        if not metrics:
            raise KeyError(f"no checkpoint in {self.folder}")
        best = max(metrics, key=lambda step: (_rank(metrics[step]), step))
        return best, metrics[best]

    def restore(self, epochs: int, like: Any) -> Any:
        """Returns the state after `epochs` epochs, shaped and placed like `like`."""
        self._manager.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(epochs, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()
