from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from medadv_jax.evaluation import statistics


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 300), (7, 10), (299, 300), (300, 300)])
def test_wilson_is_that_of_statsmodels(successes, n):
    reference: Any = proportion_confint(successes, n, method="wilson")
    np.testing.assert_allclose(statistics.wilson_interval(successes, n), reference, atol=1e-9)


def test_mcnemar_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    for n in (3, 20, 300):
        a, b = rng.random(n) < 0.8, rng.random(n) < 0.6
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        only_a, only_b, p = statistics.mcnemar_exact(a, b)
        assert (only_a, only_b) == (table[0][1], table[1][0])
        reference: Any = mcnemar(table, exact=True)
        assert p == pytest.approx(reference.pvalue)
        assert statistics.mcnemar_exact(b, a) == (only_b, only_a, p)
    assert statistics.mcnemar_exact(a, a) == (0, 0, 1.0)


def test_holm_by_hand_and_by_statsmodels():
    # Smallest 0.01 · 3 = 0.03; then 0.02 · 2 = 0.04; then 0.03 · 1, not below its forerunner.
    assert statistics.holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []
    p = np.random.default_rng(1).random(12) ** 3
    reference: Any = multipletests(p, method="holm")[1]
    np.testing.assert_allclose(statistics.holm(list(p)), reference)


def coverage(groups, size, seed, interval, repeats=600):
    """Share of simulated test sets whose interval holds the true accuracy, 0.7.

    A patient's images are right with a probability of its own.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(groups), size)
    held = 0
    for _ in range(repeats):
        chance = rng.beta(3.5, 1.5, groups)[patient]
        low, high = interval(rng.random(len(patient)) < chance, patient)
        held += low <= 0.7 <= high
    return held / repeats


@pytest.mark.parametrize(("groups", "size"), [(10, 6), (40, 6)])
def test_clustered_interval_covers_what_it_promises(groups, size):
    def clustered(right, patient):
        return statistics.cluster_bootstrap(
            lambda w: w @ right / w.sum(axis=1), patient, draws=600
        ) or (0, 1)

    def images(right, patient):
        return statistics.wilson_interval(int(right.sum()), len(right))

    assert 0.93 <= coverage(groups, size, 4, clustered) <= 0.97
    # That images of a patient are alike matters here: the interval for images misses.
    assert coverage(groups, size, 4, images) < 0.9


def test_bootstrap_of_single_images_has_the_width_of_theory():
    x = np.random.default_rng(2).normal(size=400)
    interval = statistics.cluster_bootstrap(
        lambda w: w @ x / w.sum(axis=1), np.arange(400), draws=8000
    )
    assert interval is not None
    half = 1.966 * x.std(ddof=1) / 20  # Student's t with 399 degrees of freedom
    assert interval[0] == pytest.approx(x.mean() - half, abs=half * 0.06)
    assert interval[1] == pytest.approx(x.mean() + half, abs=half * 0.06)


def test_groups_stay_together_and_order_does_not_matter():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    weights = statistics.cluster_weights(groups, draws=50, seed=3)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()  # as many groups as there are
    order = np.array([5, 0, 3, 1, 4, 2])
    shuffled = statistics.cluster_weights(groups[order], draws=50, seed=3)
    assert (shuffled == weights[:, order]).all()
    assert (statistics.cluster_weights(groups, draws=50, seed=4) != weights).any()


def test_where_groups_say_nothing_there_is_no_interval():
    def mean_of_first(w):
        return w[:, 0] / w[:, 0]  # undefined whenever the first group is not drawn

    assert statistics.cluster_bootstrap(mean_of_first, np.arange(4)) is None
    assert statistics.cluster_bootstrap(lambda w: w[:, 0], np.zeros(9)) is None


def test_proportion_of_one_answer_counts_patients_not_images():
    right, patient = np.ones(60, bool), np.repeat(np.arange(12), 5)
    assert statistics.proportion_interval(right, patient) == statistics.wilson_interval(12, 12)
    assert statistics.proportion_interval(~right, patient) == statistics.wilson_interval(0, 12)
    alone = np.arange(60)
    mixed = alone < 42
    assert statistics.proportion_interval(mixed, alone) == statistics.wilson_interval(42, 60)
    assert statistics.proportion_interval(mixed[:5], np.zeros(5)) is None
    assert statistics.proportion_interval(right[:0], patient[:0]) is None


def test_mean_and_sample_deviation():
    assert statistics.mean_sd([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.sqrt(7 / 3)))
    assert statistics.mean_sd([0.5]) == (0.5, None)
    with pytest.raises(ValueError, match="no value"):
        statistics.mean_sd([])
