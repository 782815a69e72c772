"""Predictions → numbers. Pure functions over numpy arrays; scikit-learn's definitions."""

import dataclasses
from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

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
      accuracy: share correct, and Wilson's 95 % interval accuracy_low … accuracy_high.
      precision: tp / (tp + fp).
      recall: tp / (tp + fn), the sensitivity.
      specificity: tn / (tn + fp).
      f1: harmonic mean of precision and recall.
      auc: area under the ROC curve of the score of class 1.
      attack_success_rate: share of the examples correct when clean that the attack made wrong.
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
        from sklearn.metrics import confusion_matrix  # lazily: it takes a second

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
        correct = clean_predicted == label
        broken = int((correct & (predicted != label)).sum())
        why = "no example is correct when clean"
        success = ratio("attack_success_rate", broken, int(correct.sum()), why)
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


# The worst case over attempts of an attacker.


def worst_attempt(wrong: Any, loss: Any) -> Any:
    """Returns the attempt that harms most: (S, ...) bool, (S, ...) float -> (...) integer.

    A wrong prediction comes before a correct one; among equals the larger loss, then the first.
    Takes arrays of numpy or of JAX.
    """
    xp = loss.__array_namespace__()
    loss = xp.where(wrong == wrong.any(axis=0, keepdims=True), loss, -xp.inf)
    return xp.argmax(loss, axis=0)


def worst_prediction(
    label: np.ndarray, score: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the worst of S predictions for each example: score (n,) and class (n,).

    Args:
      label: (n,) integer, 0 or 1.
      score: (S, n) float, probability of class 1; the lower that of the label, the worse.
      predicted: (S, n) integer.
    """
    own = np.where(label == 1, score, 1 - score)
    chosen = worst_attempt(predicted != label, -own)[None]
    lowest = np.take_along_axis(own, chosen, axis=0)[0]
    worst = np.take_along_axis(predicted, chosen, axis=0)[0]
    return np.where(label == 1, lowest, 1 - lowest), worst


def correct_in_all(keys: Iterable[K], correct: Iterable[bool]) -> dict[K, bool]:
    """Returns key -> is every record of this key correct? In the order of their first records.

    Args:
      keys: of each record, for example the example's id.
      correct: of each record.
    """
    found: dict[K, bool] = {}
    for key, good in zip(keys, correct, strict=True):
        found[key] = bool(good) and found.get(key, True)
    return found


def larger_class(label: np.ndarray) -> int:
    """Returns how many of the labels (n,) are of the larger class; ValueError without any."""
    return int(np.unique(label, return_counts=True)[1].max())


def is_trivial(label: np.ndarray, predicted: np.ndarray) -> bool:
    """Returns whether predictions (n,) are no better than always naming the larger class.

    If that is so on clean images, robustness is meaningless: no attack changes a constant.
    """
    return int((predicted == label).sum()) <= larger_class(label)


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
    correct = predicted == label
    intervals: dict[str, Interval | None] = {
        "accuracy": proportion_interval(correct, groups, weights, seed)
    }
    if weights is None and len(label):
        weights = cluster_weights(groups, seed=seed)
    ratios = {  # part and whole, as examples that count
        "precision": (correct & (predicted == 1), predicted == 1),
        "recall": (correct & (label == 1), label == 1),
        "specificity": (correct & (label == 0), label == 0),
        "f1": (2.0 * (correct & (label == 1)), (label == 1) * 1.0 + (predicted == 1)),
    }
    if clean_predicted is not None:
        before = clean_predicted == label
        ratios["attack_success_rate"] = (before & ~correct, before)
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


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width from 0.5 to 1 that hold examples.

    Attributes:
      confidence: (k,) mean probability of the predicted class.
      accuracy: (k,) share correct.
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
    """Compares the confidence of a classifier of two classes with its accuracy.

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
    correct = np.bincount(place, predicted == label, minlength=bins)[used] / count
    error = float((count * np.abs(mean - correct)).sum() / len(label))
    return Reliability(mean, correct, count, error)
