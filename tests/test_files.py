"""Files of runs that earlier versions wrote."""

import json

import pytest

from medadv_jax.errors import UserError
from medadv_jax.files import read_metrics


def test_validation_under_attack_has_its_own_name_in_old_runs_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    old = {"epoch": 1, "accuracy": 0.9, "validation_accuracy": 0.5, "validation_loss": 1.0}
    new = {"epoch": 2, "validation_adversarial_accuracy": 0.6, "validation_adversarial_loss": 1.0}
    lines = [{"defense": "base", **old}, {"defense": "hybrid", **old}, {"defense": "hybrid", **new}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base, hybrid, resumed = read_metrics(path)
    assert (base, resumed) == (lines[0], lines[2])
    assert hybrid == {
        "defense": "hybrid",
        "epoch": 1,
        "accuracy": 0.9,
        "validation_adversarial_accuracy": 0.5,
        "validation_adversarial_loss": 1.0,
    }
    assert read_metrics(tmp_path / "missing") == []
    path.write_text("{")
    with pytest.raises(UserError, match=r"metrics.jsonl: damaged"):
        read_metrics(path)
