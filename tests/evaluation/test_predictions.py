import dataclasses
import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from medadv_jax.data.splits import Example
from medadv_jax.evaluation.predictions import (
    derive_results,
    prediction_rows,
    print_results,
    read_predictions,
    worst_case,
    write_results,
    write_table,
)
from medadv_jax.evaluation.statistics import proportion_interval
from tests.helpers.tiny import read_results

EXAMPLES = [Example(f"e{i}", i % 2, f"g{i}", 40, "", str(i)) for i in range(4)]


def table():
    clean, attacked = np.array([0, 1, 0, 0]), np.array([1, 1, 1, 0])
    parts = [
        prediction_rows(("base", "none", "clean", 0.0), EXAMPLES, clean * 0.9, clean),
        prediction_rows(
            # Another order of the examples: partners are found by id, not by place.
            ("base", "adaptive", "pgd", 0.03), EXAMPLES[::-1], attacked[::-1] * 0.9, attacked[::-1]
        ),
    ]  # fmt: skip
    return pa.concat_tables(parts)


def test_results_are_derived_from_stored_predictions(tmp_path):
    path = tmp_path / "predictions.parquet"
    assert read_predictions(path).num_rows == 0
    write_table(path, table())
    assert {p.name for p in tmp_path.iterdir()} == {"predictions.parquet", "digests.json"}
    rows = derive_results(read_predictions(path))
    write_results(tmp_path / "results.csv", "breakhis", "resnet50", rows)
    clean, pgd = read_results(tmp_path / "results.csv")
    assert ",".join(clean) == (
        "dataset,model,defense,threat_model,evaluation,epsilon,n,accuracy,accuracy_low,"
        "accuracy_high,precision,recall,specificity,f1,auc,attack_success_rate,tn,fp,fn,tp"
    )
    assert (clean["evaluation"], clean["accuracy"], clean["attack_success_rate"]) == (
        "clean",
        "0.75",
        "",
    )
    assert [pgd[c] for c in ("threat_model", "epsilon", "n", "accuracy")] == [
        "adaptive", "0.03", "4", "0.25",
    ]  # fmt: skip
    assert float(pgd["attack_success_rate"]) == 2 / 3
    assert [pgd[c] for c in ("tn", "fp", "fn", "tp")] == ["0", "2", "1", "1"]


def test_worst_case_counts_an_example_as_right_if_it_is_under_every_attack():
    attacks = {"fgsm": [0, 1, 1, 1], "pgd": [0, 0, 0, 1]}  # labels: 0, 1, 0, 1
    rows = [
        prediction_rows(
            ("base", "adaptive", name, 0.03), EXAMPLES, np.zeros(4), np.array(predicted)
        )
        for name, predicted in attacks.items()
    ]
    clean = prediction_rows(
        ("base", "none", "clean", 0.0), EXAMPLES, np.zeros(4), np.array([0, 1, 0, 0])
    )
    # Under both: images 0 and 3; the last is wrong when left alone.
    found = worst_case(pa.concat_tables([clean, *rows]))
    assert found["base", "adaptive"] == {"e0": True, "e1": False, "e2": False, "e3": False}
    assert found["base", "none"] == {"e0": True, "e1": True, "e2": True, "e3": False}


def test_terminal_table_says_why_a_cell_is_empty_and_fits():
    one_class = [Example(f"e{i}", 1, "g", 0, "", str(i)) for i in range(3)]
    records = pa.concat_tables(
        prediction_rows((*key, 0.03), one_class, np.ones(3), np.ones(3, int))
        for key in (("base", "none", "clean"), ("base", "adaptive", "pgd"))
    )
    for width in (80, 124):
        text = io.StringIO()
        print_results(Console(file=text, width=width), records, derive_results(records))
        assert "needs examples of every class" in text.getvalue()
        assert "1.000" in text.getvalue()
        assert "…" not in text.getvalue()


@pytest.mark.parametrize(("groups", "method"), [("abcd", "W"), ("aabb", "R")])
def test_terminal_intervals_are_those_of_the_report(groups, method):
    examples = [dataclasses.replace(e, group=g) for e, g in zip(EXAMPLES, groups, strict=True)]
    predicted = np.array([0, 1, 0, 0])
    rows = prediction_rows(("base", "none", "clean", 0.0), examples, np.zeros(4), predicted)
    attacked = prediction_rows(("base", "adaptive", "pgd", 0.03), examples, np.zeros(4), predicted)
    records, text = pa.concat_tables([rows, attacked]), io.StringIO()
    print_results(Console(file=text, width=124), records, derive_results(records))
    correct = predicted == np.array([e.label for e in examples])
    interval = proportion_interval(correct, np.array([*groups]))
    assert interval is not None
    low, high = interval
    assert text.getvalue().count(f"0.750 ({low:.3f}–{high:.3f} {method})") == 2
