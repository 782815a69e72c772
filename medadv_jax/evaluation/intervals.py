"""Intervals of metrics, by resampling whole groups: images of one patient are alike."""

from collections.abc import Sequence

import numpy as np

from medadv_jax.evaluation.metrics import AVERAGED, auc_of, summarize
from medadv_jax.evaluation.statistics import (
    Interval,
    Statistic,
    cluster_bootstrap,
    cluster_weights,
    proportion_interval,
    ratio_statistic,
    wilson_interval,
)


def metric_intervals(
    label: np.ndarray,
    score: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    clean_predicted: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """Returns 95 % intervals of what `summarize` returns, by resampling whole groups.

    Args:
      label, score, predicted, clean_predicted: as for `metrics.summarize`.
      groups: (n,) patient or case.
      weights: (draws, n) of `cluster_weights(groups)`, to be used again.
      seed: of the resampling.

    Returns:
      name of the metric -> (low, high), None where there is none. That of the accuracy is Wilson's
      where no group has two examples.
    """
    correct = predicted == label
    intervals: dict[str, Interval | None] = {
        "accuracy": proportion_interval(correct, groups, weights, seed)
    }
    if weights is None and len(label):
        weights = cluster_weights(groups, seed=seed)
    if score.ndim == 1:
        intervals |= _class_intervals(label, score, predicted, groups, weights)
    else:
        intervals |= _macro_intervals(label, score, predicted, groups, weights)
    if clean_predicted is not None:
        before = clean_predicted == label
        intervals["attack_success_rate"] = _ratio_interval(
            before & ~correct, before, groups, weights
        )
    return intervals


Ratios = dict[
    str, tuple[np.ndarray, np.ndarray]
]  # metric -> part and whole, as examples that count


def _ratios(label: np.ndarray, predicted: np.ndarray, positive: int) -> Ratios:
    """Returns the metrics of one class that are ratios of sums over examples."""
    is_class, named, rest = label == positive, predicted == positive, label != positive
    both = is_class & named
    return {
        "precision": (both, named),
        "recall": (both, is_class),
        "specificity": (rest & ~named, rest),
        "f1": (2.0 * both, is_class * 1.0 + named),
    }


def metric_statistic(
    name: str, label: np.ndarray, score: np.ndarray, predicted: np.ndarray, groups: np.ndarray
) -> Statistic:
    """Returns weights (draws, n) -> a metric of class 1 of two: accuracy, precision, recall,
    specificity, f1 or auc; NaN where it has no value. The arguments are those of `summarize`."""
    if name == "auc":
        return _auc_statistic(label == 1, score, groups)
    if name == "accuracy":
        return ratio_statistic(predicted == label, np.ones(len(label)), groups)
    return ratio_statistic(*_ratios(label, predicted, 1)[name], groups)


def _class_intervals(
    label: np.ndarray, score: np.ndarray, predicted: np.ndarray, groups: np.ndarray,
    weights: np.ndarray | None,
) -> dict[str, Interval | None]:  # fmt: skip
    """Returns the intervals of the metrics of class 1 of two."""
    intervals: dict[str, Interval | None] = {
        name: _ratio_interval(part, whole, groups, weights)
        for name, (part, whole) in _ratios(label, predicted, 1).items()
    }
    intervals["auc"] = auc_interval(label == 1, score, groups, weights)
    return intervals


def auc_interval(
    is_class: np.ndarray, score: np.ndarray, groups: np.ndarray, weights: np.ndarray | None
) -> Interval | None:
    """Returns the interval of the area under the ROC curve; arguments as for `metric_intervals`.

    None at 0 and 1, of which resampling says nothing, and where there is no such area.
    """
    if auc_of(is_class, score, {}) in (None, 0.0, 1.0):
        return None
    statistic = _auc_statistic(is_class, score, groups)
    return cluster_bootstrap(statistic, groups, weights=weights)


def _macro_intervals(
    label: np.ndarray, score: np.ndarray, predicted: np.ndarray, groups: np.ndarray,
    weights: np.ndarray | None,
) -> dict[str, Interval | None]:  # fmt: skip
    """Returns the intervals of the macro averages of K classes.

    A resample that lacks a class has no value.
    """
    values, classes = summarize(label, score, predicted), range(score.shape[1])
    ratios = [_ratios(label, predicted, k) for k in classes]
    intervals: dict[str, Interval | None] = {}
    for name in AVERAGED:
        if getattr(values, name) in (None, 0.0, 1.0):  # resampling says nothing of the ends
            intervals[name] = None
            continue
        if name == "auc":
            statistics = [_auc_statistic(label == k, score[:, k], groups) for k in classes]
        else:
            statistics = [ratio_statistic(*each[name], groups) for each in ratios]
        intervals[name] = cluster_bootstrap(_mean_of(statistics), groups, weights=weights)
    return intervals


def _mean_of(statistics: Sequence[Statistic]) -> Statistic:
    return lambda weights: np.mean([each(weights) for each in statistics], axis=0)


def _ratio_interval(
    part: np.ndarray, whole: np.ndarray, groups: np.ndarray, weights: np.ndarray | None
) -> Interval | None:
    """Returns the interval of sum(part) / sum(whole); Wilson's over groups where it is 0 or 1."""
    if not whole.any():
        return None
    total = float(part.sum() / whole.sum())
    if total in (0.0, 1.0):  # resampling cannot say more than what was seen
        inside = len(np.unique(groups[whole > 0]))
        return wilson_interval(round(total) * inside, inside)
    return cluster_bootstrap(ratio_statistic(part, whole, groups), groups, weights=weights)


def _auc_statistic(is_class: np.ndarray, score: np.ndarray, groups: np.ndarray) -> Statistic:
    """Returns weights (draws, n) -> the area under the ROC curve of each draw; ties count half.

    The area is the share of pairs, a positive and a negative, that are in order. Pairs are counted
    once, between groups (G, G): a draw then costs G² and not n log n.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    of_group = member[:, None] == np.arange(len(first))
    above = score[is_class][:, None] - score[~is_class]
    ordered = (np.sign(above) + 1) / 2
    counts = of_group[is_class].T.astype(float) @ ordered @ of_group[~is_class].astype(float)
    classes = np.stack([of_group[is_class].sum(axis=0), of_group[~is_class].sum(axis=0)], axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, first]
        pairs = (drawn @ classes).prod(axis=1)
        return ((drawn @ counts) * drawn).sum(axis=1) / pairs

    return statistic


def patient_accuracy(
    correct: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[float, Interval | None]:
    """Returns the mean over patients of the share correct (Spanhol et al. 2016), and its interval.

    Args:
      correct: (n,) bool, n > 0.
      groups: (n,) the patient of each image.
      weights: see `cluster_bootstrap`.
      seed: of the resampling.
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    share = 1 / sizes[member]  # of an image in its patient
    patients = len(sizes)
    value = float((correct * share).sum() / patients)
    if correct.all() or not correct.any():
        return value, wilson_interval(patients if correct.all() else 0, patients)
    statistic = ratio_statistic(correct * share, share, groups)
    interval = cluster_bootstrap(statistic, groups, seed=seed, weights=weights)
    return value, interval
