"""Intervals and tests: how certain a number is. Pure functions over numpy arrays."""

from collections.abc import Callable, Sequence

import numpy as np
import scipy  # `stats` is loaded at its first use: half a second

Statistic = Callable[[np.ndarray], np.ndarray]  # weights (draws, n) -> values (draws,)
Interval = tuple[float, float]

WILSON, RESAMPLED = "W", "R"  # methods of intervals, in tables
METHODS = (
    "W: Wilson's interval, of images where each has a patient (group) of its own, else of patients,"
    " which then all agree; R: by resampling patients"
)
DRAWS = 2000
_MOST_UNDEFINED = 0.05  # share of draws in which a statistic may have no value


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns Wilson's interval for a proportion (Wilson 1927), in [0, 1].

    Raises ValueError for n = 0 or successes outside 0 … n.
    """
    interval = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def cluster_weights(groups: Sequence | np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Returns how often each example is in each of `draws` resamples of whole groups.

    Args:
      groups: (n,) of anything sortable; examples of one group stay together.
      draws: number of resamples, each of as many groups as there are.
      seed: the same seed and groups give the same weights.

    Returns:
      (draws, n) float64 of whole numbers.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, member].astype(np.float64)


def cluster_bootstrap(
    statistic: Statistic,
    groups: Sequence | np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = 0.95,
    weights: np.ndarray | None = None,
) -> Interval | None:
    """Returns the bootstrap interval of a statistic whose examples come in groups.

    Whole groups are resampled (Davison & Hinkley 1997, 3.8). The percentiles are those that give
    a mean the width of Student's t over the groups, as plain ones are too narrow for few groups
    (the expanded percentile interval, Hesterberg 2015, "What teachers should know about the
    bootstrap").

    Args:
      statistic: weights (draws, n) -> (draws,), NaN where a resample gives it no value. The
        weighted mean of `x` (n,), for one: `lambda w: w @ x / w.sum(axis=1)`.
      groups: (n,) patient or case of each example.
      draws: resamples.
      seed: of the resampling.
      confidence: of the interval.
      weights: the result of `cluster_weights`, to be used again for many statistics.

    Returns:
      (low, high), or None where groups say nothing: fewer than two, or a statistic without a value
      in more than 5 % of the resamples.
    """
    count = len(np.unique(np.asarray(groups)))
    if count < 2:
        return None
    if weights is None:
        weights = cluster_weights(groups, draws, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.asarray(statistic(weights), np.float64)
    defined = values[np.isfinite(values)]
    if len(defined) < (1 - _MOST_UNDEFINED) * len(values):
        return None
    tail = _expanded_tail(count, confidence)
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def _expanded_tail(count: int, confidence: float) -> float:
    """Returns the share of draws to leave out on each side."""
    t = scipy.stats.t.ppf((1 + confidence) / 2, count - 1)
    return float(scipy.stats.norm.cdf(-np.sqrt(count / (count - 1)) * t))


def ratio_statistic(part: np.ndarray, whole: np.ndarray, groups: np.ndarray) -> Statistic:
    """Returns weights (draws, n) -> sum(part) / sum(whole) of each draw.

    Sums are taken over groups once, as all examples of a group have one weight.

    Args:
      part, whole: (n,) numbers or bool.
      groups: (n,).
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    sums = np.stack([np.bincount(member, values) for values in (part, whole)], axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, first] @ sums
        return drawn[:, 0] / drawn[:, 1]

    return statistic


def proportion_method(correct: np.ndarray, groups: np.ndarray) -> str:
    """Returns how `proportion_interval` comes to its interval: WILSON, or RESAMPLED groups."""
    count = len(np.unique(groups))
    alike = count > 1 and (correct.all() or not correct.any())
    return WILSON if count == len(correct) or alike else RESAMPLED


def proportion_interval(
    correct: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None, seed: int = 0
) -> Interval | None:
    """Returns the 95 % interval of the share of `correct`, honest about examples of one group.

    Every group of one example: Wilson's. Else the clustered bootstrap; where all examples agree
    it would have no width, so Wilson's is taken with groups for examples: all images of a patient
    then count as one.

    Args:
      correct: (n,) bool.
      groups: (n,).
      weights: see `cluster_bootstrap`.
      seed: of the resampling.

    Returns:
      (low, high), or None for no example or for one group of several.
    """
    n, count = len(correct), len(np.unique(groups))
    if n == 0:
        return None
    if proportion_method(correct, groups) == WILSON:
        return wilson_interval(round(float(correct.mean()) * count), count)
    share = ratio_statistic(correct, np.ones(n), groups)
    return cluster_bootstrap(share, groups, weights=weights, seed=seed)


def mcnemar_exact(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[int, int, float]:
    """Compares two classifiers on the same examples (McNemar 1947; the exact, two-sided test).

    Args:
      correct_a, correct_b: (n,) bool, in the same order of examples.

    Returns:
      (examples that only a gets right, only b, p); p = 1 where they never differ. Images count as
      independent: with several of a patient, p is too small.
    """
    correct_a, correct_b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    if only_a + only_b == 0:
        return 0, 0, 1.0
    return only_a, only_b, float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for having asked several questions (Holm 1979), in their order."""
    count, adjusted, largest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns mean and sample standard deviation (n − 1), None for a single value.

    Raises ValueError for no value.
    """
    if not len(values):
        raise ValueError("no value")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
