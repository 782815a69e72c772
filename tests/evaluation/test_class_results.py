"""Metrics of K classes against scikit-learn, and the files that hold them."""

import csv
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics as reference

from medadv_jax.data.splits import Example
from medadv_jax.evaluation import intervals, metrics
from medadv_jax.evaluation.class_results import write_class_results
from medadv_jax.evaluation.predictions import (
    SCHEMA,
    derive_results,
    prediction_rows,
    read_predictions,
    write_results,
    write_table,
)
from medadv_jax.evaluation.statistics import cluster_weights

NAMES = ("a", "b", "c")


def drawn(seed):
    """Labels, scores and predictions of K classes; some classes may be absent or never named."""
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(3, 7)), int(rng.integers(1, 60))
    present = rng.permutation(classes)[: rng.integers(1, classes + 1)]
    label = rng.choice(present, n)
    score = rng.random((n, classes)).round(1) + 0.01  # with ties
    score /= score.sum(axis=1, keepdims=True)
    predicted = rng.choice(present, n) if seed % 2 else score.argmax(axis=1)
    return label, score, predicted


def same(found, expected):
    """Compares numbers, None standing for no value."""
    found = np.array([np.nan if value is None else value for value in np.atleast_1d(found)], float)
    np.testing.assert_allclose(found, np.atleast_1d(expected), atol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of absent classes
@pytest.mark.parametrize("seed", range(40))
def test_definitions_are_those_of_scikit_learn(seed):
    label, score, predicted = drawn(seed)
    classes = range(score.shape[1])
    found = metrics.one_against_rest(label, score, predicted)
    nan: Any = np.nan  # their annotation says text
    options = {"labels": [*classes], "average": None, "zero_division": nan}
    expected = {
        "precision": reference.precision_score(label, predicted, **options),
        "recall": reference.recall_score(label, predicted, **options),
        "f1": reference.f1_score(label, predicted, **options),
        "specificity": np.array([
            reference.recall_score(label != k, predicted != k, zero_division=nan)
            for k in classes
        ]),
        "auc": np.array([
            reference.roc_auc_score(label == k, score[:, k])
            if 0 < (label == k).sum() < len(label) else np.nan
            for k in classes
        ]),
    }  # fmt: skip
    total = metrics.summarize(label, score, predicted)
    for name, values in expected.items():
        same([getattr(each, name) for each in found], values)
        # A macro average of classes without a value would be one of other classes.
        same(getattr(total, name), values.mean())
        assert (name in total.reasons) == bool(np.isnan(values).any())
    if len(np.unique(label)) == len(classes):
        ovr = reference.roc_auc_score(label, score, multi_class="ovr", average="macro")
        same(total.auc, ovr)
    same(total.accuracy, reference.accuracy_score(label, predicted))
    assert (total.tn, total.fp, total.fn, total.tp) == (None,) * 4
    matrix = metrics.confusion_counts(label, predicted, len(classes))
    np.testing.assert_array_equal(
        matrix, reference.confusion_matrix(label, predicted, labels=[*classes])
    )
    assert [each.n for each in found] == matrix.sum(axis=1).tolist()
    assert sum(each.tp for each in found) == np.trace(matrix)
    same(metrics.balanced_accuracy(found), reference.balanced_accuracy_score(label, predicted))


def test_without_examples_nothing_has_a_value():
    empty = np.array([], int)
    m = metrics.summarize(empty, np.empty((0, 4)), empty, empty)
    assert {name for name, value in vars(m).items() if value is None} >= set(m.reasons)
    assert set(m.reasons) == {"accuracy", *metrics.AVERAGED, "attack_success_rate"}
    assert (
        metrics.balanced_accuracy(metrics.one_against_rest(empty, np.empty((0, 4)), empty)) is None
    )


def test_two_classes_against_the_rest_mirror_each_other():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 50), rng.random(50).round(1)
    zero, one = metrics.one_against_rest(label, score, (score > 0.4).astype(int))
    assert (zero.tn, zero.fp, zero.fn, zero.tp) == (one.tp, one.fn, one.fp, one.tn)
    assert (zero.recall, zero.specificity) == (one.specificity, one.recall)
    assert zero.auc == pytest.approx(one.auc)


def test_intervals_are_quantiles_of_weighted_macro_averages_of_scikit_learn(monkeypatch):
    rng = np.random.default_rng(3)
    label, groups = rng.integers(0, 3, 120), rng.integers(0, 40, 120)
    score = rng.dirichlet(np.ones(3), 120) + 0.5 * np.eye(3)[label]
    score /= score.sum(axis=1, keepdims=True)
    predicted, weights = score.argmax(axis=1), cluster_weights(groups, draws=20, seed=1)
    found = []

    def keep(statistic, groups, weights, **_):
        found.append(statistic(weights))

    monkeypatch.setattr(intervals, "cluster_bootstrap", keep)
    intervals.metric_intervals(label, score, predicted, groups, weights=weights)
    expected = [
        [of(label, predicted, average="macro", sample_weight=w) for w in weights]
        for of in (reference.precision_score, reference.recall_score)
    ]
    rest = [(label != k, predicted != k) for k in range(3)]
    expected.append(
        [np.mean([reference.recall_score(*r, sample_weight=w) for r in rest]) for w in weights]
    )
    expected.append(
        [reference.f1_score(label, predicted, average="macro", sample_weight=w) for w in weights]
    )
    ones = [(label == k, score[:, k]) for k in range(3)]
    expected.append(
        [np.mean([reference.roc_auc_score(*o, sample_weight=w) for o in ones]) for w in weights]
    )
    np.testing.assert_allclose(found[-5:], expected)


def test_intervals_of_macro_averages_hold_them():
    rng = np.random.default_rng(4)
    label, groups = rng.integers(0, 4, 200), rng.integers(0, 60, 200)
    score = 0.5 * np.eye(4)[label] + 0.8 * rng.random((200, 4))
    predicted = score.argmax(axis=1)
    values = metrics.summarize(label, score, predicted)
    found = intervals.metric_intervals(label, score, predicted, groups)
    for name in metrics.AVERAGED:
        interval = found[name]
        assert interval is not None
        assert interval[0] < getattr(values, name) < interval[1]


def test_worst_prediction_is_that_of_the_lowest_probability_of_the_label():
    label = np.array([2, 0])
    scores = np.array([
        [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]],
        [[0.3, 0.3, 0.4], [0.45, 0.5, 0.05]],
        [[0.1, 0.55, 0.35], [0.4, 0.35, 0.25]],  # first: wrong
    ])  # fmt: skip
    score, worst = metrics.worst_prediction(label, scores, scores.argmax(axis=2))
    np.testing.assert_array_equal(worst, [1, 1])
    np.testing.assert_array_equal(score, [scores[2, 0], scores[1, 1]])


def test_reliability_by_hand():
    score = np.array([[0.4, 0.3, 0.3], [0.9, 0.05, 0.05], [0.0, 0.1, 0.9], [0.3, 0.4, 0.3]])
    found = metrics.reliability(np.array([1, 0, 0, 1]), score, score.argmax(axis=1))
    np.testing.assert_allclose(found.confidence, [0.4, 0.9])
    np.testing.assert_allclose(found.accuracy, [0.5, 0.5])
    assert found.error == pytest.approx((0.1 + 0.4) / 2)


def records(score, predicted, broken):
    """Clean records of these scores, and an attack after which `broken` is predicted."""
    examples = [Example(f"e{i}", i % 3 % 2 if score.ndim == 1 else i % 3, f"g{i}", 0, "", "")
                for i in range(len(score))]  # fmt: skip
    return [
        prediction_rows(("base", "none", "clean", 0.0), examples, score, predicted),
        prediction_rows(("base", "adaptive", "pgd", 0.03), examples, score, broken),
    ]


def test_files_of_three_classes(tmp_path):
    score = np.random.default_rng(0).dirichlet(np.ones(3), 6).astype(np.float32)
    predicted, broken = np.array([0, 1, 2, 0, 1, 0]), np.array([0, 0, 2, 0, 0, 0])
    path = tmp_path / "predictions.parquet"
    first, second = records(score, predicted, broken)
    write_table(path, first)
    table = read_predictions(path, 3)
    assert [name for name in table.column_names if "score" in name] == [
        "score_0", "score_1", "score_2",
    ]  # fmt: skip
    write_table(path, pa.concat_tables([table, second]))
    table = read_predictions(path)
    np.testing.assert_array_equal(table["score_1"].to_numpy()[:6], score[:, 1])
    write_class_results(tmp_path, NAMES, table)
    confusion = json.loads((tmp_path / "confusion.json").read_text())
    assert confusion["classes"] == ["a", "b", "c"]
    assert confusion["rows"][0] == {
        "defense": "base", "threat_model": "none", "evaluation": "clean", "epsilon": 0.0,
        "matrix": [[2, 0, 0], [0, 2, 0], [1, 0, 1]],
    }  # fmt: skip
    assert confusion["rows"][1]["matrix"] == [[2, 0, 0], [2, 0, 0], [1, 0, 1]]
    with (tmp_path / "per_class.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert [line["name"] for line in lines] == ["a", "b", "c"] * 2
    assert lines[4]["precision"] == ""  # class b is never predicted
    assert float(lines[4]["balanced_accuracy"]) == pytest.approx((1 + 0 + 0.5) / 3)
    (_, clean), (_, attacked) = derive_results(table)
    assert clean.accuracy == pytest.approx(5 / 6)
    assert attacked.attack_success_rate == pytest.approx(2 / 5)
    assert attacked.reasons == {"precision": "class 1 is never predicted"}


def test_files_of_two_classes_are_as_before(tmp_path):
    score = np.array([0.25, 0.75, 0.125, 0.5], np.float32)
    predicted, broken = np.array([0, 1, 0, 0]), np.array([0, 0, 1, 0])
    first, second = records(score, predicted, broken)
    assert first.schema == SCHEMA
    table = pa.concat_tables([first, second])
    write_results(tmp_path / "results.csv", "d", "m", derive_results(table))
    assert (tmp_path / "results.csv").read_text() == (
        "dataset,model,defense,threat_model,evaluation,epsilon,n,accuracy,accuracy_low,"
        "accuracy_high,precision,recall,specificity,f1,auc,attack_success_rate,tn,fp,fn,tp\n"
        "d,m,base,none,clean,0.0,4,1.0,0.5101091635454027,1.0,1.0,1.0,1.0,1.0,1.0,,3,0,0,1\n"
        "d,m,base,adaptive,pgd,0.03,4,0.5,0.15003898915214953,0.8499610108478505,0.0,0.0,"
        "0.6666666666666666,0.0,1.0,0.5,2,1,1,0\n"
    )
    write_class_results(tmp_path, ("no", "yes"), table)
    assert not (tmp_path / "confusion.json").exists()
    with (tmp_path / "per_class.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert [(line["class"], line["name"], line["n"]) for line in lines] == [
        ("0", "no", "3"), ("1", "yes", "1"), ("0", "no", "3"), ("1", "yes", "1"),
    ]  # fmt: skip
