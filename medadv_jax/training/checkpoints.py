"""Orbax checkpoints of one defence: the newest to resume from, the best to evaluate.

Beside the arrays lies their SHA-256, which is verified when they are restored. A checkpoint of an
earlier version has none, and is restored unverified.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from medadv_jax.errors import UserError
from medadv_jax.files import sha256

_OLD = ".old"  # superseded checkpoints are renamed to this before they are deleted
_SEAL = ("arrays_sha256", "sha256")  # of the arrays, and of the JSON beside them


def _rank(metrics: Any) -> float:
    """Ranks checkpoints by validation accuracy, ties by the lower loss.

    With several labels an image, the mean area under their ROC curves takes the place of accuracy.
    """
    # The second term is below 1 / n, one example's share, for up to a million examples.
    first = metrics["mean_auc"] if "mean_auc" in metrics else metrics["accuracy"]
    return first + 1e-6 / (1 + metrics["loss"])


class Checkpoints:
    """The folder `checkpoints/<defense>/`; a step is the number of epochs trained.

    A folder named by a number is a complete checkpoint: Orbax writes to a temporary name and
    renames, and superseded checkpoints are renamed before they are deleted. `partial/` holds a
    state within an epoch, named by the steps taken; it does not count as newest or best.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._partial_folder = self.folder / "partial"
        self._purge()
        options = ocp.CheckpointManagerOptions(
            best_fn=_rank,  # without it no metrics are stored
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [
                    preservation_policy.LatestN(1),
                    preservation_policy.BestN(get_metric_fn=_rank, n=1),
                ]
            ),
            cleanup_tmp_directories=True,
            todelete_subdir=_OLD,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except ValueError as error:  # metrics that are not JSON
            raise self._unreadable(self.folder, error) from error

    def save(self, epochs: int, state: Any, metrics: dict[str, float]) -> None:
        """Stores a state after `epochs` epochs with its validation `accuracy` and `loss`."""
        self._manager.wait_until_finished()
        self._purge()
        sealed = _seal(metrics, state)
        self._manager.save(epochs, args=ocp.args.StandardSave(state), metrics=sealed, force=True)

    def latest(self) -> int:
        """Returns the number of epochs of the newest checkpoint, 0 if there is none."""
        return self._manager.latest_step() or 0

    def reached(self, epochs: int) -> bool:
        """Returns whether there is a checkpoint of `epochs` epochs or more."""
        return any(step >= epochs for step in self._manager.all_steps())

    def best(self) -> tuple[int, dict[str, float]]:
        """Returns epochs and metrics of the best checkpoint; KeyError if there is none."""
        self._manager.wait_until_finished()
        steps = self._manager.all_steps()
        metrics: dict[int, Any] = {step: self._metrics(step) for step in steps}
        if not metrics:
            raise KeyError(f"no checkpoint in {self.folder}")
        best = max(metrics, key=lambda step: (_rank(metrics[step]), step))
        names = [name for name in ("accuracy", "mean_auc", "loss") if name in metrics[best]]
        return best, {name: metrics[best][name] for name in names}

    def restore(self, epochs: int, like: Any) -> Any:
        """Returns the state after `epochs` epochs, shaped and placed like `like`.

        Raises:
          UserError: the checkpoint is damaged, of another network, or holds NaN.
        """
        self._manager.wait_until_finished()
        arguments = ocp.args.StandardRestore(_abstract(like))
        try:
            state = self._manager.restore(epochs, args=arguments)
        except Exception as error:  # Orbax and TensorStore raise nearly anything on broken files
            raise self._unreadable(self.folder / str(epochs), error) from error
        return self._checked(self.folder / str(epochs), state, like, self._metrics(epochs))

    def save_partial(self, state: Any, position: dict[str, Any]) -> None:
        """Stores a state within an epoch; returns when it is on disk.

        Args:
          state: has `step`.
          position: where in the epoch it is; JSON-serialisable.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            position=ocp.args.JsonSave(_seal(position, state)),
        )
        with self._partial_manager() as manager:
            if manager.latest_step() == int(state.step):
                return
            manager.save(int(state.step), args=items, force=True)
            manager.wait_until_finished()
        self._purge()

    def restore_partial(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest state within an epoch and its position, None if there is none."""
        if not self._partial_folder.is_dir():
            return None
        with self._partial_manager() as manager:
            step = manager.latest_step()
            if step is None:
                return None
            items = ocp.args.Composite(
                state=ocp.args.StandardRestore(_abstract(like)), position=ocp.args.JsonRestore()
            )
            path = self._partial_folder / str(step)
            try:
                found = manager.restore(step, args=items)
                position = dict(found["position"])
                _verify_seal(position)
            except Exception as error:  # as in `restore`
                raise self._unreadable(path, error) from error
        state = self._checked(path, found["state"], like, position)
        return state, {name: position[name] for name in position if name not in _SEAL}

    def drop_partial(self) -> None:
        """Deletes the states within epochs, once the epochs' checkpoints are on disk."""
        self._manager.wait_until_finished()
        if self._partial_folder.is_dir() and jax.process_index() == 0:
            self._purge()
            (self.folder / _OLD).mkdir()
            self._partial_folder.replace(self.folder / _OLD / "partial")
            self._purge()

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()
        self._purge()

    def _purge(self) -> None:
        """Deletes superseded checkpoints."""
        for folder in (self.folder, self._partial_folder):
            shutil.rmtree(folder / _OLD, ignore_errors=True)

    def _partial_manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, cleanup_tmp_directories=True, todelete_subdir=_OLD
        )
        return ocp.CheckpointManager(self._partial_folder, options=options)

    def _metrics(self, epochs: int) -> Any:
        try:
            metrics: Any = self._manager.metrics(epochs)
            _verify_seal(metrics)
            _rank(metrics)
        except Exception as error:  # the metrics file is damaged
            raise self._unreadable(self.folder / str(epochs), error) from error
        return metrics

    def _checked(self, path: Path, state: Any, like: Any, beside: Mapping[str, Any]) -> Any:
        """Returns the state; raises UserError unless it is finite, has the shapes of `like`, and is
        what was saved with the sealed JSON `beside` it."""
        for place, leaf in jax.tree_util.tree_leaves_with_path(state):
            if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
                name = jax.tree_util.keystr(place, simple=True, separator="/")
                raise UserError(
                    f"{path}: {name} holds NaN or infinities; delete this folder to go on from an"
                    " earlier checkpoint"
                )
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), t) for t in (state, like)]
        if shapes[0] != shapes[1]:
            raise self._unreadable(path, ValueError("arrays have other shapes"))
        if tree_sha256(state) != beside.get("arrays_sha256", tree_sha256(state)):
            raise self._unreadable(path, ValueError("the SHA-256 of the arrays is another"))
        return state

    def _unreadable(self, path: Path, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return UserError(
            f"{path}: damaged, or of another network: {reason}; delete this folder to go on from"
            f" an earlier checkpoint, or {self.folder} to train anew"
        )


def tree_sha256(tree: Any) -> str:
    """Returns the SHA-256 of the names, types, shapes and bytes of all arrays of a tree."""
    digest = hashlib.sha256()
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(place, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {np.shape(leaf)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def _seal(content: Mapping[str, Any], state: Any) -> dict[str, Any]:
    """Returns JSON with the SHA-256 of the state's arrays, and its own."""
    sealed = {**content, "arrays_sha256": tree_sha256(state)}
    return {**sealed, "sha256": sha256(json.dumps(sealed, sort_keys=True).encode())}


def _verify_seal(sealed: Mapping[str, Any]) -> None:
    """Raises ValueError unless JSON has either the `sha256` of its content, or no seal at all."""
    content = {name: value for name, value in sealed.items() if name != "sha256"}
    own = sha256(json.dumps(content, sort_keys=True).encode())
    if not sealed.keys().isdisjoint(_SEAL) and sealed.get("sha256") != own:
        raise ValueError("the SHA-256 of the JSON beside the arrays is another")


def _abstract(like: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
