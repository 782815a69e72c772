"""Risk-coverage curves against closed forms, conformal sets in simulation."""

import csv

import numpy as np
import pyarrow as pa
import pytest

from medadv_jax.data.splits import Example
from medadv_jax.evaluation.predictions import prediction_rows
from medadv_jax.evaluation.uncertainty import (
    Answers,
    answer_threshold,
    answers_above,
    conformal_probability,
    describe_sets,
    prediction_sets,
    risk_coverage,
    write_uncertainty,
)


def draw(rng, count, num_classes):
    """Returns scores and labels of a model that is right about its own doubts."""
    probability = rng.dirichlet(np.full(num_classes, 0.7), count)
    label = (rng.random((count, 1)) > probability.cumsum(1)).sum(1)
    return probability[:, 1] if num_classes == 2 else probability, label


def test_the_curve_of_four_images():
    score = np.array([0.95, 0.1, 0.3, 0.6])  # confidences .95, .9, .7, .6
    curve = risk_coverage(score, np.array([True, False, True, False]))
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_images_of_equal_confidence_are_answered_together():
    score = np.array([0.9, 0.9, 0.1, 0.1, 0.6])
    for correct in ([1, 0, 0, 0, 1], [0, 0, 1, 0, 1]):
        curve = risk_coverage(score, np.array(correct, bool))
        np.testing.assert_allclose(curve.risk, [0.75, 0.75, 0.75, 0.75, 0.6])


def test_the_area_of_a_model_that_knows_its_doubts():
    """Confidence is uniform in [1/2, 1] and right: risk at coverage c is c/4, its mean 1/8."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 200_000)
    curve = risk_coverage(confidence, rng.random(len(confidence)) < confidence)
    assert curve.area == pytest.approx(1 / 8, abs=4e-3)
    np.testing.assert_allclose(curve.risk[49_999::50_000], np.array([1, 2, 3, 4]) / 16, atol=5e-3)


def test_a_threshold_keeps_the_share_that_it_is_asked_for():
    score = np.linspace(0.5, 1, 11)[1:]  # ten confidences
    threshold = answer_threshold(score, 0.8)
    assert threshold == score[2]
    correct = score > 0.7  # of the eight that are answered, two are wrong
    assert answers_above(score, correct, threshold) == Answers(0.8, 6 / 8)
    assert answers_above(score, correct, 1.1) == Answers(0.0, None)


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_sets_hold_the_label_as_often_as_promised(num_classes, alpha):
    """Over calibrations of n images, coverage has the mean ⌈(n + 1)(1 - α)⌉ / (n + 1)."""
    rng, n = np.random.default_rng(0), 39
    score, label = draw(rng, 4000, num_classes)
    found = []
    for _ in range(400):
        probability = conformal_probability(*draw(rng, n, num_classes), alpha)
        found.append(describe_sets(prediction_sets(score, probability), label).coverage)
    expected = np.ceil((n + 1) * (1 - alpha) - 1e-9) / (n + 1)
    assert np.mean(found) == pytest.approx(expected, abs=0.012)


def test_too_few_images_promise_with_all_classes():
    probability = conformal_probability(np.array([0.9, 0.8]), np.array([1, 1]))
    assert probability == 0
    assert prediction_sets(np.array([0.99]), probability).all()


def test_the_rule_of_the_rank():
    label = np.ones(9, int)
    score = np.linspace(0.9, 0.1, 9)
    assert conformal_probability(score, label, 0.1) == pytest.approx(0.1)  # ⌈10 · 0.9⌉ = 9
    assert conformal_probability(score, label, 0.5) == pytest.approx(0.5)  # the 5th largest


@pytest.mark.parametrize("num_classes", [2, 3])
def test_rows_of_uncertainty_csv(tmp_path, num_classes):
    rng = np.random.default_rng(0)

    def rows(evaluation, count):
        score, label = draw(rng, count, num_classes)
        examples = [Example(f"e{i}", int(k), "g", 0, "", "") for i, k in enumerate(label)]
        threat = "none" if evaluation == "clean" else "adaptive"
        predicted = score > 0.5 if num_classes == 2 else score.argmax(1)
        key = ("base", threat, evaluation, 0.03 * (threat != "none"))
        return prediction_rows(key, examples, score.astype(np.float32), predicted.astype(int))

    predictions = pa.concat_tables([rows("clean", 30), rows("pgd", 30)])
    write_uncertainty(tmp_path / "uncertainty.csv", predictions, rows("clean", 50))
    found = list(csv.DictReader((tmp_path / "uncertainty.csv").read_text().splitlines()))
    assert [row["evaluation"] for row in found] == ["clean", "pgd"]
    assert found[0]["threshold"] == found[1]["threshold"]
    assert {row["n"] for row in found} == {"30"}
    assert 1 <= float(found[0]["set_size"]) < num_classes
    write_uncertainty(tmp_path / "uncertainty.csv", predictions, predictions.slice(0, 0))
    assert len((tmp_path / "uncertainty.csv").read_text().splitlines()) == 1
