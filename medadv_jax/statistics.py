"""How sure a number is. Pure functions."""

from scipy.stats import binomtest


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval for a proportion (Wilson 1927), in [0, 1].

    Raises ValueError for n = 0 or successes outside 0 … n.
    """
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
