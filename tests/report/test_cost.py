"""Accuracy against cost: which runs have a row, and what is in it."""

import json

from medadv_jax.report.cost import cost_sections
from medadv_jax.report.read_runs import load_run
from medadv_jax.report.tables import Estimate, Table
from tests.helpers.synthetic_run import make_run


def test_every_attacked_classifier_with_a_cost_has_a_row(tmp_path):
    runs = []
    for name in ("a", "b", "without"):
        path = make_run(tmp_path / name, defenses=["base", "adversarial"], optional=False)
        if name != "without":
            spent = {"epochs": 1, "seconds": 90.0, "gradient_passes": 1e6}
            (path / "training_cost.json").write_text(json.dumps({"adversarial": spent}))
        if name == "b":
            each = {"parameters": 123456, "flops": 2_500_000_000, "milliseconds": 4.25}
            content = {"device": "abacus (wood)", "classifiers": {"base": each}}
            (path / "inference_cost.json").write_text(json.dumps(content))
        runs.append(load_run(path))
    (section,) = cost_sections(runs)
    table = section.parts[0]
    assert isinstance(table, Table)
    assert [(row[0], *row[2:3], *row[-5:]) for row in table.rows] == [
        ("a", "adversarial", "90.0", "1000000", None, None, None),
        ("b", "base", None, None, "123456", "2.500", "4.2"),
        ("b", "adversarial", "90.0", "1000000", None, None, None),
    ]
    assert "abacus (wood)" in table.notes[0]
    summary = runs[0].summary("adversarial", "adaptive", "worst")
    assert summary is not None
    worst = table.rows[0][-6]
    assert isinstance(worst, Estimate)
    assert worst.value == summary.accuracy
    assert cost_sections([runs[2]]) == []
