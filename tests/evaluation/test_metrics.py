import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from medadv_jax.evaluation import intervals, metrics
from medadv_jax.evaluation.metrics import summarize
from medadv_jax.evaluation.statistics import cluster_weights, wilson_interval


def test_definitions_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        label = rng.integers(0, 2, 30)
        score = rng.random(30).round(1)  # with ties
        predicted = (score > 0.4).astype(int)
        if len(np.unique(label)) < 2 or len(np.unique(predicted)) < 2:
            continue
        m = summarize(label, score, predicted)
        assert m.accuracy == pytest.approx(reference.accuracy_score(label, predicted))
        assert m.precision == pytest.approx(reference.precision_score(label, predicted))
        assert m.recall == pytest.approx(reference.recall_score(label, predicted))
        assert m.specificity == pytest.approx(reference.recall_score(1 - label, 1 - predicted))
        assert m.f1 == pytest.approx(reference.f1_score(label, predicted))
        assert m.auc == pytest.approx(reference.roc_auc_score(label, score))
        assert sum(getattr(m, count) for count in metrics.COUNTS) == m.n == 30
        assert m.reasons == {}


def test_attack_success_is_over_examples_that_were_right():
    label = np.array([0, 0, 1, 1, 1])
    clean = np.array([0, 1, 1, 1, 0])  # three right
    attacked = np.array([1, 0, 1, 0, 0])  # two of them broken, one wrong one mended
    m = summarize(label, attacked * 1.0, attacked, clean)
    assert m.attack_success_rate == pytest.approx(2 / 3)
    assert summarize(label, clean * 1.0, clean).attack_success_rate is None


def test_what_has_no_meaning_is_none_with_a_reason():
    empty = np.array([], int)
    m = summarize(empty, empty, empty, empty)
    none = {name for name, value in vars(m).items() if value is None}
    assert none - {"accuracy_low", "accuracy_high"} == set(m.reasons)
    assert m.n == 0
    one_class = np.ones(4, int)
    m = summarize(one_class, np.linspace(0, 1, 4), one_class, 1 - one_class)
    assert m.accuracy == 1
    assert (m.auc, m.specificity, m.attack_success_rate) == (None, None, None)
    assert set(m.reasons) == {"auc", "specificity", "attack_success_rate"}
    m = summarize(np.array([0, 1]), np.array([np.nan, 1.0]), np.array([0, 0]))
    assert m.reasons.keys() == {"auc", "precision"}
    assert m.f1 == 0  # no reason to hide this one: a positive was there and was missed


def test_wilson_interval_by_hand():
    z, n, p = 1.959964, 10, 0.7
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(wilson_interval(7, 10), (centre - half, centre + half), atol=1e-6)
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(10, 10)[1] == 1


def graded():
    """Labels, scores with ties, predictions, and patients of several images."""
    rng = np.random.default_rng(5)
    label = rng.integers(0, 2, 200)
    score = np.clip(label * 0.3 + rng.random(200) * 0.7, 0, 1).round(2)
    return label, score, (score > 0.5).astype(int), rng.integers(0, 40, 200)


def test_intervals_are_quantiles_of_weighted_metrics_of_scikit_learn(monkeypatch):
    label, score, predicted, groups = graded()
    clean = np.where(np.arange(200) < 150, label, 1 - label)
    weights = cluster_weights(groups, draws=25, seed=6)
    drawn = {}

    def keep(statistic, groups, weights, **_):
        drawn[len(drawn)] = statistic(weights)

    monkeypatch.setattr(intervals, "cluster_bootstrap", keep)
    intervals.metric_intervals(label, score, predicted, groups, clean, weights)
    expected = [
        [reference.precision_score(label, predicted, sample_weight=w) for w in weights],
        [reference.recall_score(label, predicted, sample_weight=w) for w in weights],
        [reference.recall_score(1 - label, 1 - predicted, sample_weight=w) for w in weights],
        [reference.f1_score(label, predicted, sample_weight=w) for w in weights],
        [reference.roc_auc_score(label, score, sample_weight=w) for w in weights],
        [1 - np.average((predicted == label)[:150], weights=w[:150]) for w in weights],
    ]
    np.testing.assert_allclose(list(drawn.values()), expected)


def test_intervals_hold_the_metric_and_are_honest_at_the_ends():
    label, score, predicted, groups = graded()
    values = summarize(label, score, predicted)
    found = intervals.metric_intervals(label, score, predicted, groups)
    for name, interval in found.items():
        assert interval is not None
        assert interval[0] < getattr(values, name) < interval[1]
    perfect = intervals.metric_intervals(label, label * 1.0, label, groups)
    patients = len(np.unique(groups[label == 1]))
    assert perfect["recall"] == wilson_interval(patients, patients)
    assert perfect["auc"] is None  # resampling a perfect order only gives perfect orders
    nothing = intervals.metric_intervals(label, score, np.zeros_like(label), groups)
    assert nothing["precision"] is None


def test_patients_count_alike_however_many_images_they_have():
    groups = np.array([0, 0, 0, 0, 1, 2, 2])
    right = np.array([1, 1, 1, 0, 1, 0, 1], bool)
    value, interval = intervals.patient_accuracy(right, groups)
    assert value == pytest.approx((0.75 + 1 + 0.5) / 3)
    assert interval is not None
    assert interval[0] <= value <= interval[1]
    assert intervals.patient_accuracy(np.ones(7, bool), groups) == (1.0, wilson_interval(3, 3))


def test_reliability_is_that_of_scikit_learn_and_its_error_by_hand():
    label, score, predicted, _ = graded()
    found = metrics.reliability(label, score, predicted)
    confidence = np.where(predicted == 1, score, 1 - score)
    # Away from the edges of bins, where the two differ in which side an edge belongs to.
    inside = ~np.isclose(confidence * 20 % 1, 0, atol=1e-6) & ~np.isclose(confidence * 20 % 1, 1)
    found = metrics.reliability(label[inside], score[inside], predicted[inside])
    share, mean = calibration_curve(
        (predicted == label)[inside], confidence[inside], n_bins=20, strategy="uniform"
    )
    np.testing.assert_allclose(found.accuracy, share)
    np.testing.assert_allclose(found.confidence, mean)
    assert found.count.sum() == inside.sum()
    # Three images at 0.9, one right; one at 0.6, right: (3 · |0.9 − 1/3| + |0.6 − 1|) / 4.
    score = np.array([0.9, 0.1, 0.9, 0.4])
    by_hand = metrics.reliability(np.array([1, 1, 0, 0]), score, np.array([1, 0, 1, 0]))
    assert by_hand.error == pytest.approx(0.525)
    assert metrics.reliability(np.array([1]), np.array([np.nan]), np.array([1])).error is None


def test_worst_prediction_by_hand():
    label = np.array([0, 1, 1])
    scores = np.array([[0.1, 0.9, 0.6], [0.4, 0.8, 0.7]])
    predicted = np.array([[0, 1, 1], [0, 0, 1]])
    score, worst = metrics.worst_prediction(label, scores, predicted)
    np.testing.assert_allclose(score, [0.4, 0.8, 0.6])
    np.testing.assert_array_equal(worst, [0, 0, 1])


def test_correct_in_all_is_correct_in_every_row():
    keys, right = ["b", "a", "b", "a", "c"], np.array([True, False, True, True, False])
    found = metrics.correct_in_all(keys, right)
    assert [*found.items()] == [("b", True), ("a", False), ("c", False)]
