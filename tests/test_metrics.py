import numpy as np
import pytest
from sklearn import metrics as reference

from medadv_jax.metrics import summarize
from medadv_jax.statistics import wilson_interval


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
        assert m.tn + m.fp + m.fn + m.tp == m.n == 30
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
