"""Predictions → numbers. Pure functions over numpy arrays; scikit-learn's definitions."""

import dataclasses
from collections.abc import Hashable, Iterable
from typing import TypeVar

import numpy as np

from medadv_jax.evaluation.statistics import (
    Interval,
    Statistic,
    cluster_bootstrap,
    cluster_weights,
    proportion_interval,
    ratio_statistic,
    wilson_interval,
)

BINS = 10  # of a reliability curve

K = TypeVar("K", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Numbers of one classifier on one kind of image; None where a number has no meaning.

    Attributes:
      n: examples.
      accuracy: share right, and Wilson's 95 % interval accuracy_low … accuracy_high.
      precision: tp / (tp + fp).
      recall: tp / (tp + fn), the sensitivity.
      specificity: tn / (tn + fp).
      f1: harmonic mean of precision and recall.
      auc: area under the ROC curve of the score of class 1.
      attack_success_rate: share of the examples right when clean that the attack made wrong.
      tn, fp, fn, tp: the confusion matrix; class 1 is positive.
      reasons: column -> why it is None.
    """

    n: int
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    precision: float | None
    recall: float | None
    specificity: float | None
    f1: float | None
    auc: float | None
    attack_success_rate: float | None
    tn: int
    fp: int
    fn: int
    tp: int
    reasons: dict[str, str]


def summarize(
    label: np.ndarray,
    score: np.ndarray,
    predicted: np.ndarray,
    clean_predicted: np.ndarray | None = None,
) -> Metrics:
    """Returns the metrics of a set of predictions, which may be empty or of one class.

    Args:
      label: (n,) integer, 0 or 1.
      score: (n,) float, of class 1; only its order counts.
      predicted: (n,) integer, 0 or 1.
      clean_predicted: (n,) the predictions on the clean images, if `predicted` is under attack.
    """
    n = len(label)
    reasons: dict[str, str] = {}
    tn, fp, fn, tp = (0, 0, 0, 0)
    if n:
        from sklearn.metrics import confusion_matrix  # here: a second, before no step of training

        tn, fp, fn, tp = (int(x) for x in confusion_matrix(label, predicted, labels=[0, 1]).ravel())

    def ratio(column: str, part: int, whole: int, reason: str) -> float | None:
        if whole == 0:
            reasons[column] = reason
            return None
        return part / whole

    accuracy = ratio("accuracy", tn + tp, n, "no examples")
    low, high = wilson_interval(tn + tp, n) if n else (None, None)
    precision = ratio("precision", tp, tp + fp, "class 1 is never predicted")
    recall = ratio("recall", tp, tp + fn, "no example of class 1")
    specificity = ratio("specificity", tn, tn + fp, "no example of class 0")
    f1 = ratio("f1", 2 * tp, 2 * tp + fp + fn, "class 1 is neither present nor predicted")
    auc = _auc(label, score, reasons)
    success = None
    if clean_predicted is not None:
        right = clean_predicted == label
        broken = int((right & (predicted != label)).sum())
        why = "no example is right when clean"
        success = ratio("attack_success_rate", broken, int(right.sum()), why)
    return Metrics(
        n, accuracy, low, high, precision, recall, specificity, f1, auc, success,
        tn, fp, fn, tp, reasons,
    )  # fmt: skip


def _auc(label: np.ndarray, score: np.ndarray, reasons: dict[str, str]) -> float | None:
    if len(np.unique(label)) < 2:
        reasons["auc"] = "needs examples of both classes"
        return None
    if not np.isfinite(score).all():
        reasons["auc"] = "a score is not finite"
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(label, score))


# The worst case: whoever attacks has as many tries as he likes.


def larger_class(label: np.ndarray) -> int:
    """Returns how many of the labels (n,) are of the larger class; ValueError without any."""
    return int(np.unique(label, return_counts=True)[1].max())


def is_trivial(label: np.ndarray, predicted: np.ndarray) -> bool:
    """Are these answers (n,) no better than to name the larger class always?

    A classifier of which that is true on clean images withstands every attack: there is nothing
    to attack.
    """
    return int((predicted == label).sum()) <= larger_class(label)


def right_throughout(keys: Iterable[K], right: Iterable[bool]) -> dict[K, bool]:
    """Returns key -> is it right in every row? Keys stand in the order of their first rows.

    Args:
      keys: of each row, for example the example's name.
      right: of each row.
    """
    found: dict[K, bool] = {}
    for key, good in zip(keys, right, strict=True):
        found[key] = bool(good) and found.get(key, True)
    return found


def worst_answers(
    label: np.ndarray, scores: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the worst of S answers to each example: score (n,) and class (n,).

    Args:
      label: (n,) integer, 0 or 1.
      scores: (S, n) float, probability of class 1; of these the lowest of the own class.
      predicted: (S, n) integer; wrong as soon as one is.
    """
    lowest = np.where(label == 1, scores, 1 - scores).min(axis=0)
    right = (predicted == label).all(axis=0)
    return np.where(label == 1, lowest, 1 - lowest), np.where(right, label, 1 - label)


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
      label, score, predicted, clean_predicted: as for `summarize`.
      groups: (n,) patient or case.
      weights: (draws, n) of `cluster_weights(groups)`, to be used again.
      seed: of the resampling.

    Returns:
      name of the metric -> (low, high), None where there is none. That of the accuracy is Wilson's
      where no group has two examples.
    """
    right = predicted == label
    intervals: dict[str, Interval | None] = {
        "accuracy": proportion_interval(right, groups, weights, seed)
    }
    if weights is None and len(label):
        weights = cluster_weights(groups, seed=seed)
    ratios = {  # part and whole, as examples that count
        "precision": (right & (predicted == 1), predicted == 1),
        "recall": (right & (label == 1), label == 1),
        "specificity": (right & (label == 0), label == 0),
        "f1": (2.0 * (right & (label == 1)), (label == 1) * 1.0 + (predicted == 1)),
    }
    if clean_predicted is not None:
        before = clean_predicted == label
        ratios["attack_success_rate"] = (before & ~right, before)
    for name, (part, whole) in ratios.items():
        intervals[name] = _ratio_interval(part, whole, groups, weights)
    intervals["auc"] = None
    if _auc(label, score, {}) not in (None, 0.0, 1.0):  # resampling says nothing of the ends
        intervals["auc"] = cluster_bootstrap(
            _auc_statistic(label, score, groups), groups, weights=weights
        )
    return intervals


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


def _auc_statistic(label: np.ndarray, score: np.ndarray, groups: np.ndarray) -> Statistic:
    """Returns weights (draws, n) -> the area under the ROC curve of each draw; ties count half.

    The area is the share of pairs, a positive and a negative, that are in order. Pairs are counted
    once, between groups (G, G): a draw then costs G² and not n log n.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    of_group = member[:, None] == np.arange(len(first))
    positive, negative = label == 1, label == 0
    above = score[positive][:, None] - score[negative]
    ordered = (np.sign(above) + 1) / 2
    counts = of_group[positive].T.astype(float) @ ordered @ of_group[negative].astype(float)
    classes = np.stack([of_group[positive].sum(axis=0), of_group[negative].sum(axis=0)], axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, first]
        pairs = (drawn @ classes).prod(axis=1)
        return ((drawn @ counts) * drawn).sum(axis=1) / pairs

    return statistic


def patient_accuracy(
    right: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[float, Interval | None]:
    """Returns the mean over patients of the share right (Spanhol et al. 2016), and its interval.

    Args:
      right: (n,) bool, n > 0.
      groups: (n,) the patient of each image.
      weights: see `cluster_bootstrap`.
      seed: of the resampling.
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    share = 1 / sizes[member]  # of an image in its patient
    patients = len(sizes)
    value = float((right * share).sum() / patients)
    if right.all() or not right.any():
        return value, wilson_interval(patients if right.all() else 0, patients)
    statistic = ratio_statistic(right * share, share, groups)
    interval = cluster_bootstrap(statistic, groups, seed=seed, weights=weights)
    return value, interval


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width from 0.5 to 1 that hold examples.

    Attributes:
      confidence: (k,) mean probability of the predicted class.
      accuracy: (k,) share right.
      count: (k,) examples.
      error: expected calibration error: mean |confidence − accuracy|, weighted by count
        (Guo et al. 2017); None without examples or where a score is not a probability.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    error: float | None


def reliability(
    label: np.ndarray, score: np.ndarray, predicted: np.ndarray, bins: int = BINS
) -> Reliability:
    """Returns how far a classifier of two classes is right as often as it says.

    Args:
      label: (n,) integer, 0 or 1.
      score: (n,) float, probability of class 1.
      predicted: (n,) integer, the more probable class.
      bins: of equal width; one of two classes has a probability of at least 0.5.
    """
    confidence = np.where(predicted == 1, score, 1 - np.asarray(score, np.float64))
    if not len(label) or not ((score >= 0) & (score <= 1)).all():
        return Reliability(*(np.empty(0) for _ in range(3)), error=None)
    place = np.clip(((confidence - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    used = count > 0
    count = count[used]
    mean = np.bincount(place, confidence, minlength=bins)[used] / count
    right = np.bincount(place, predicted == label, minlength=bins)[used] / count
    error = float((count * np.abs(mean - right)).sum() / len(label))
    return Reliability(mean, right, count, error)
