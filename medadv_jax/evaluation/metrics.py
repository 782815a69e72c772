"""Predictions → numbers. Pure functions over numpy arrays; scikit-learn's definitions.

A `score` is the probability of class 1 (n,) where there are two classes, and the probability of
every class (n, K) where there are more.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from medadv_jax.evaluation.statistics import wilson_interval

BINS = 10  # of a reliability curve

K = TypeVar("K", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Numbers of one class against the rest; None where a number has no meaning.

    Attributes:
      n: examples of the class.
      precision: tp / (tp + fp).
      recall: tp / (tp + fn), the sensitivity.
      specificity: tn / (tn + fp).
      f1: harmonic mean of precision and recall.
      auc: area under the ROC curve of the score of the class.
      tn, fp, fn, tp: the confusion matrix; the class is positive, all others are negative.
      reasons: column -> why it is None.
    """

    n: int
    precision: float | None
    recall: float | None
    specificity: float | None
    f1: float | None
    auc: float | None
    tn: int
    fp: int
    fn: int
    tp: int
    reasons: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Numbers of one classifier on one kind of image; None where a number has no meaning.

    Attributes:
      n: examples.
      accuracy: share correct, and Wilson's 95 % interval accuracy_low … accuracy_high.
      precision, recall, specificity, f1, auc: those of class 1 where there are two classes; where
        there are more, the mean over all classes, one against the rest (the macro average), None
        if a class has no value.
      attack_success_rate: share of the examples correct when clean that the attack made wrong.
      tn, fp, fn, tp: the confusion matrix of two classes, class 1 is positive; None for more.
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
    tn: int | None
    fp: int | None
    fn: int | None
    tp: int | None
    reasons: dict[str, str]


AVERAGED = ("precision", "recall", "specificity", "f1", "auc")
COUNTS = ("tn", "fp", "fn", "tp")


def summarize(
    label: np.ndarray,
    score: np.ndarray,
    predicted: np.ndarray,
    clean_predicted: np.ndarray | None = None,
) -> Metrics:
    """Returns the metrics of a set of predictions, which may be empty or of one class.

    Args:
      label: (n,) integer, 0 … K-1.
      score: (n,) float of class 1, or (n, K) of every class; only their order counts.
      predicted: (n,) integer, 0 … K-1.
      clean_predicted: (n,) the predictions on the clean images, if `predicted` is under attack.
    """
    n, right = len(label), int((predicted == label).sum())
    reasons: dict[str, str] = {}
    accuracy = _ratio(reasons, "accuracy", right, n, "no examples")
    low, high = wilson_interval(right, n) if n else (None, None)
    values: dict[str, Any]
    if score.ndim == 1:
        found = class_metrics(label, score, predicted)
        reasons |= found.reasons
        values = {column: getattr(found, column) for column in (*AVERAGED, *COUNTS)}
    else:
        classes = one_against_rest(label, score, predicted)
        values = {column: _macro(classes, column, reasons) for column in AVERAGED}
        values |= dict.fromkeys(COUNTS)
    success = None
    if clean_predicted is not None:
        correct = clean_predicted == label
        broken = int((correct & (predicted != label)).sum())
        why = "no example is correct when clean"
        success = _ratio(reasons, "attack_success_rate", broken, int(correct.sum()), why)
    return Metrics(
        n, accuracy, low, high, attack_success_rate=success, reasons=reasons, **values
    )  # fmt: skip


def class_metrics(
    label: np.ndarray, score: np.ndarray, predicted: np.ndarray, positive: int = 1
) -> ClassMetrics:
    """Returns the metrics of one class against the rest.

    Args:
      label: (n,) integer.
      score: (n,) float, of the class; only its order counts.
      predicted: (n,) integer.
      positive: the class.
    """
    is_class, named = label == positive, predicted == positive
    tp, fp = int((is_class & named).sum()), int((~is_class & named).sum())
    fn, tn = int((is_class & ~named).sum()), int((~is_class & ~named).sum())
    reasons: dict[str, str] = {}
    name = f"class {positive}"
    return ClassMetrics(
        tp + fn,
        _ratio(reasons, "precision", tp, tp + fp, f"{name} is never predicted"),
        _ratio(reasons, "recall", tp, tp + fn, f"no example of {name}"),
        _ratio(reasons, "specificity", tn, tn + fp, "no example of another class"),
        _ratio(reasons, "f1", 2 * tp, 2 * tp + fp + fn, f"{name} is neither present nor predicted"),
        auc_of(is_class, score, reasons),
        tn, fp, fn, tp, reasons,
    )  # fmt: skip


def one_against_rest(
    label: np.ndarray, score: np.ndarray, predicted: np.ndarray
) -> list[ClassMetrics]:
    """Returns the metrics of every class against the rest; arguments as for `summarize`."""
    columns = score.T if score.ndim == 2 else (-score, score)  # the order of 1 - score
    return [class_metrics(label, column, predicted, k) for k, column in enumerate(columns)]


def balanced_accuracy(classes: Sequence[ClassMetrics]) -> float | None:
    """Returns the mean recall of the classes that have examples, None without any."""
    recalls = [each.recall for each in classes if each.recall is not None]
    return float(np.mean(recalls)) if recalls else None


def confusion_counts(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns (K, K) integer: row i, column j counts the examples of class i predicted as j."""
    cells = np.asarray(label, int) * num_classes + np.asarray(predicted, int)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _ratio(reasons: dict[str, str], column: str, part: int, whole: int, why: str) -> float | None:
    if whole == 0:
        reasons[column] = why
        return None
    return part / whole


def _macro(classes: Sequence[ClassMetrics], column: str, reasons: dict[str, str]) -> float | None:
    """Returns the mean over all classes; None if one has no value, with the reason of the first."""
    missing = [each.reasons[column] for each in classes if column in each.reasons]
    if missing:
        reasons[column] = missing[0]
        return None
    return float(np.mean([getattr(each, column) for each in classes]))


def auc_of(positive: np.ndarray, score: np.ndarray, reasons: dict[str, str]) -> float | None:
    """Returns the area under the ROC curve; None, with a reason, where there is none.

    Args:
      positive: (n,) bool.
      score: (n,) float, higher for positive examples.
      reasons: gets the reason as "auc".
    """
    if positive.all() or not positive.any():
        reasons["auc"] = "needs examples of every class"
        return None
    if not np.isfinite(score).all():
        reasons["auc"] = "a score is not finite"
        return None
    from sklearn.metrics import roc_auc_score  # lazily: it takes a second

    return float(roc_auc_score(positive.astype(int), score))


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
    """Returns the worst of S predictions for each example: its score and its class (n,).

    Args:
      label: (n,) integer, 0 … K-1.
      score: (S, n) float of class 1, or (S, n, K) of every class; the lower the probability of the
        label, the worse.
      predicted: (S, n) integer.
    """
    own = probability_of(np.broadcast_to(label, predicted.shape), score)
    chosen = worst_attempt(predicted != label, -own)[None]
    worst = np.take_along_axis(predicted, chosen, axis=0)[0]
    if score.ndim > predicted.ndim:
        return np.take_along_axis(score, chosen[..., None], axis=0)[0], worst
    lowest = np.take_along_axis(own, chosen, axis=0)[0]
    return np.where(label == 1, lowest, 1 - lowest), worst


def probability_of(classes: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Returns the probability of a class for each example: (…) integer, score -> (…).

    A score has the shape of `classes`, or one axis more of K.
    """
    if score.ndim == classes.ndim:
        return np.where(classes == 1, score, 1 - score)
    return np.take_along_axis(score, classes[..., None], axis=-1)[..., 0]


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


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width from 1 / K to 1 that hold examples.

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
    """Compares the confidence of a classifier with its accuracy.

    Args:
      label: (n,) integer, 0 … K-1.
      score: (n,) float, probability of class 1, or (n, K) of every class.
      predicted: (n,) integer, the most probable class.
      bins: of equal width; the most probable of K classes has a probability of at least 1 / K.
    """
    num_classes = 2 if score.ndim == 1 else score.shape[1]
    confidence = probability_of(predicted, np.asarray(score, np.float64))
    if not len(label) or not ((score >= 0) & (score <= 1)).all():
        return Reliability(*(np.empty(0) for _ in range(3)), error=None)
    width = num_classes / (num_classes - 1)  # of all bins, inverted
    place = np.clip(((confidence - 1 / num_classes) * width * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    used = count > 0
    count = count[used]
    mean = np.bincount(place, confidence, minlength=bins)[used] / count
    correct = np.bincount(place, predicted == label, minlength=bins)[used] / count
    error = float((count * np.abs(mean - correct)).sum() / len(label))
    return Reliability(mean, correct, count, error)
