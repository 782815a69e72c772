"""Predictions → numbers. Pure functions over numpy arrays; scikit-learn's definitions."""

import dataclasses

import numpy as np
from sklearn.metrics import confusion_matrix, roc_auc_score

from medadv_jax.statistics import wilson_interval


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
    return float(roc_auc_score(label, score))
