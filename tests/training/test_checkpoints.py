"""A checkpoint's arrays and metrics are what was saved, or an error."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest

from medadv_jax.errors import UserError
from medadv_jax.training.checkpoints import Checkpoints, tree_sha256

STATE = {"step": np.array(3, np.int32), "a": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE, {"accuracy": 0.9, "loss": 0.5})
    checkpoints.save(2, STATE, {"accuracy": 0.5, "loss": 0.7})
    checkpoints.close()
    return tmp_path


def load(folder):
    checkpoints = Checkpoints(folder)
    try:
        best, metrics = checkpoints.best()
        return best, metrics, checkpoints.restore(best, STATE)
    finally:
        checkpoints.close()


def test_what_was_saved_comes_back_and_other_arrays_are_refused(saved):
    best, metrics, state = load(saved)
    assert (best, metrics) == (1, {"accuracy": 0.9, "loss": 0.5})
    assert tree_sha256(state) == tree_sha256(STATE)
    other = {**STATE, "a": STATE["a"] + np.float32(1e-6)}
    with ocp.StandardCheckpointer() as writer:
        writer.save(saved / "1" / "default", other, force=True)
    with pytest.raises(UserError, match=r"/1: damaged.*SHA-256 of the arrays.*delete this folder"):
        load(saved)


def test_other_metrics_would_choose_another_checkpoint_and_are_refused(saved):
    path = saved / "2" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.5", "0.95", 1))
    with pytest.raises(UserError, match=r"/2: damaged.*the JSON beside the arrays"):
        load(saved)


def test_a_checkpoint_of_an_earlier_version_is_restored(saved):
    for step in "12":
        path = saved / step / "metrics" / "metrics"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({name: content[name] for name in ("accuracy", "loss")}))
    assert load(saved)[0] == 1


def test_the_digest_is_of_names_types_shapes_and_bits():
    others = (
        {**STATE, "b": STATE["a"]}, {"step": STATE["step"], "b": STATE["a"]},
        {**STATE, "step": np.array(3, np.int64)}, {**STATE, "a": STATE["a"].reshape(3, 2)},
        {**STATE, "a": STATE["a"] + 1},
    )  # fmt: skip
    assert len({tree_sha256(tree) for tree in (STATE, *others)}) == 1 + len(others)
