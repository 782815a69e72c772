"""Whether one confusion matrix can have produced a printed row, by exhaustive search.

A row prints accuracy, precision, recall, F1 and AUC, rounded. All but the AUC follow from four
counts (tp, fp, fn, tn), and these counts bound the AUC, if the prediction is the score against a
threshold: the ROC curve rises and passes through (fp/neg, tp/pos), so that
tp/pos · (1 − fp/neg) ≤ AUC ≤ 1 − fp/neg · (1 − tp/pos), in whole halves of 1 / (pos · neg).
A row is impossible if no counts of up to 2,000 images, all the images that the paper uses of a
data set, with any share of positives, round to all five numbers.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

from medadv_jax.report.paper.printed import METRICS, PaperRow

MOST_IMAGES = 2000
DIGITS = 4  # of the paper's tables, trailing zeros dropped

POSSIBLE, UNBALANCED, IMPOSSIBLE = "possible", "unbalanced", "impossible"
MARKS = {POSSIBLE: "", UNBALANCED: "†", IMPOSSIBLE: "*"}

RULE = (
    "Rule: accuracy, precision, recall and F1 (the definitions that Table III prints upside down)"
    " follow from one confusion matrix, which also bounds the AUC. Every matrix of up to"
    f" {MOST_IMAGES} images (all that the paper uses of a data set) is tried."
    " * impossible: none rounds to the row's five numbers, whatever the share of the classes."
    " † only on unbalanced classes, though the paper calls its images balanced. Numbers are read as"
    f" rounded to {DIGITS} decimals, trailing zeros dropped."
)


@dataclasses.dataclass(frozen=True)
class Counts:
    """A confusion matrix; class 1 is positive."""

    tn: int
    fp: int
    fn: int
    tp: int

    @property
    def n(self) -> int:
        """Number of images."""
        return self.tn + self.fp + self.fn + self.tp


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a row is possible.

    Attributes:
      kind: POSSIBLE (on balanced classes), UNBALANCED (only on others) or IMPOSSIBLE.
      counts: the smallest matrix that rounds to the row, balanced ones first; or None.
      reason: one line.
    """

    kind: str
    counts: Counts | None
    reason: str


@functools.cache
def judge(row: PaperRow, fewest_digits: int = DIGITS) -> Verdict:
    """Returns whether one confusion matrix can have produced a row.

    Args:
      row: of the paper.
      fewest_digits: decimals that a number with fewer is taken to be rounded to; 4 reads 0.5 as
        0.5000, 3 reads it as 0.500.
    """
    windows = {m: _window(getattr(row, m), fewest_digits) for m in METRICS}
    for kind, balanced in ((POSSIBLE, True), (UNBALANCED, False)):
        counts = _fewest(windows, balanced)
        if counts:
            share = f"{counts.n} images, {counts.tp + counts.fn} of them positive"
            return Verdict(kind, counts, f"fits {share}")
    return Verdict(IMPOSSIBLE, None, _why_not(row, windows))


Windows = dict[str, tuple[float, float]]


def _window(printed: str, fewest_digits: int) -> tuple[float, float]:
    """Returns the interval of numbers that round to a printed one."""
    digits = len(printed.partition(".")[2])
    half = 0.5 * 10.0 ** -min(max(digits, fewest_digits), DIGITS) + 1e-9
    return float(printed) - half, float(printed) + half


def _fewest(windows: Windows, balanced: bool) -> Counts | None:
    """Returns the smallest matrix within all windows."""
    best, most = None, MOST_IMAGES
    for positives in range(1, MOST_IMAGES):
        for counts in _with_positives(windows, positives, balanced, most):
            if counts.n <= most and _auc_fits(counts, windows["auc"]):
                best, most = counts, counts.n - 1
        if positives >= most:
            break
    return best


def _with_positives(
    windows: Windows, positives: int, balanced: bool, most: int
) -> Iterator[Counts]:
    """Yields the matrices with `positives` positives that fit all numbers but the AUC."""
    low, high = windows["recall"]
    for tp in _integers(low * positives, high * positives, 0, positives):
        for fp in _false_positives(windows, tp, positives, most - positives):
            for negatives in _negatives(windows["accuracy"], tp, fp, positives, most, balanced):
                yield Counts(negatives - fp, fp, positives - tp, tp)


def _false_positives(windows: Windows, tp: int, positives: int, most: int) -> range:
    """Returns the fp that precision and F1 allow; without predictions of class 1 both are 0."""
    (p_low, p_high), (f_low, f_high) = windows["precision"], windows["f1"]
    if tp == 0:
        return range(0, most + 1) if p_low <= 0 and f_low <= 0 else range(0)
    if p_high <= 0 or f_high <= 0:
        return range(0)
    low = max(tp / p_high - tp, 2 * tp / f_high - tp - positives)
    high = min(
        tp / p_low - tp if p_low > 0 else math.inf,
        2 * tp / f_low - tp - positives if f_low > 0 else math.inf,
    )
    return _integers(low, high, 0, most)


def _negatives(
    window: tuple[float, float], tp: int, fp: int, positives: int, most: int, balanced: bool
) -> range:
    """Returns the numbers of negatives at which (tp + negatives − fp) / n is the accuracy."""
    low, high = float(max(fp, 1)), float(most - positives)
    if balanced:
        low, high = max(low, positives), min(high, positives)
    a_low, a_high = window
    # negatives · (1 − accuracy) = accuracy · positives − tp + fp, for each end of the window
    if a_low < 1:
        low = max(low, (a_low * positives - tp + fp) / (1 - a_low))
    if a_high < 1:
        high = min(high, (a_high * positives - tp + fp) / (1 - a_high))
    return _integers(low, high, 1, most)


def _integers(low: float, high: float, least: int, most: int) -> range:
    """Returns the integers within both [low, high] and [least, most]."""
    if low > most or high < least:
        return range(0)
    return range(max(least, math.ceil(low)), math.floor(min(high, most)) + 1)


def _auc_fits(counts: Counts, window: tuple[float, float]) -> bool:
    positives, negatives = counts.tp + counts.fn, counts.tn + counts.fp
    tpr, fpr = counts.tp / positives, counts.fp / negatives
    low, high = max(window[0], tpr * (1 - fpr)), min(window[1], 1 - fpr * (1 - tpr))
    halves = 2 * positives * negatives  # a tie counts half
    return math.floor(high * halves + 1e-6) >= math.ceil(low * halves - 1e-6)


def _why_not(row: PaperRow, windows: Windows) -> str:
    """Returns the shortest reason for an impossible row."""
    (p_low, p_high), (r_low, r_high) = windows["precision"], windows["recall"]
    least, most = _harmonic(p_low, r_low), _harmonic(p_high, r_high)
    if windows["f1"][1] < least or windows["f1"][0] > most:
        mean = _harmonic(row.value("precision"), row.value("recall"))
        return f"precision and recall give an F1 of {mean:.4f}"
    return "no counts give all five numbers"


def _harmonic(precision: float, recall: float) -> float:
    precision, recall = max(precision, 0.0), max(recall, 0.0)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
