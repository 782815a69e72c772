"""Records of a network that is no longer there are removed, and no others."""

import numpy as np
import pyarrow as pa
import pytest

from medadv_jax.data.splits import Example
from medadv_jax.errors import UserError
from medadv_jax.evaluation.predictions import prediction_rows, read_predictions, write_table
from medadv_jax.evaluation.stale_records import read_networks, remove_stale
from medadv_jax.files import write_json

FILES = ("results.csv", "pictures.npz", "self_checks.json", "detection.parquet")
NETWORKS = {"base": "b", "adversarial": "a"}


@pytest.fixture
def workdir(tmp_path):
    examples = [Example("e", 1, "g", 0, "", "")]
    tables = [
        prediction_rows((name, "none", "clean", 0.0), examples, np.ones(1, np.float32), np.ones(1))
        for name in NETWORKS
    ]
    write_table(tmp_path / "predictions.parquet", pa.concat_tables(tables))
    for name in FILES:
        (tmp_path / name).write_text("")
    write_json(tmp_path / "config.json", {})
    assert remove_stale(tmp_path, NETWORKS) == []
    return tmp_path


@pytest.mark.parametrize(
    ("now", "changed", "left"),
    [
        (NETWORKS, [], ["base", "adversarial"]),
        ({**NETWORKS, "adversarial": "x"}, ["adversarial"], ["base"]),
        ({**NETWORKS, "base": "x"}, ["base"], []),  # attacks on others transfer from it
    ],
)
def test_rows_of_other_networks_go(workdir, now, changed, left):
    assert remove_stale(workdir, now) == changed
    assert read_predictions(workdir / "predictions.parquet")["defense"].to_pylist() == left
    assert [(workdir / name).exists() for name in FILES] == [not changed] * len(FILES)
    assert read_networks(workdir) == now
    assert remove_stale(workdir, now) == []


def test_nothing_is_removed_where_a_record_is_damaged(workdir):
    path = workdir / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"predictions\.parquet: damaged"):
        remove_stale(workdir, {**NETWORKS, "base": "x"})
    assert all((workdir / name).exists() for name in FILES)
    assert read_networks(workdir) == NETWORKS
