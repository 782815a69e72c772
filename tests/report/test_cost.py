"""Accuracy against cost: which runs have a row, and what is in it."""

import json

from medadv_jax.report.cost import cost_sections
from medadv_jax.report.read_runs import load_run
from medadv_jax.report.tables import Estimate, Table
from tests.helpers.synthetic_run import make_run


def test_every_classifier_with_a_cost_has_a_row(tmp_path):
    runs = []
    for name in ("a", "b", "without"):
        path = make_run(tmp_path / name, defenses=["base", "adversarial"], optional=False)
        if name != "without":
            spent = {"epochs": 1, "seconds": 90.0, "gradient_passes": 1e6}
            cost = {"base": spent, "adversarial": spent}
            (path / "training_cost.json").write_text(json.dumps(cost))
        runs.append(load_run(path))
    (section,) = cost_sections(runs)
    table = section.parts[0]
    assert isinstance(table, Table)
    assert [row[:2] for row in table.rows] == [("a", "adversarial"), ("b", "adversarial")]
    summary = runs[0].summary("adversarial", "adaptive", "worst")
    assert summary is not None
    worst = table.rows[0][-3]
    assert isinstance(worst, Estimate)
    assert worst.value == summary.accuracy
    assert table.rows[0][-2:] == (90, 1_000_000)
    assert cost_sections([runs[0], runs[2]]) == []
