"""The Square Attack: random squares, kept where they lower the margin; needs no gradient.

L∞ (Andriushchenko et al. 2020, algorithms 1 and 2). Where it breaks images that gradient attacks
leave, those gradients are masked. Draws are made on the host; only the network runs on the device.
"""

from collections.abc import Callable

import numpy as np

_SHARE = 0.8  # of an image that the first squares cover: p of the paper
# The paper halves p after these iterations of 10,000; here after the same shares of the queries.
_HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)
_PAPER = 10_000


def square_attack(
    margins_fn: Callable[[np.ndarray, np.ndarray], np.ndarray],
    images: np.ndarray,
    epsilon: float,
    queries: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Attacks images by queries of their margins.

    Args:
      margins_fn: (pixels (m, H, W, C), their positions in `images` (m,)) -> margins (m,), positive
        where classified correctly.
      images: (n, H, W, C) float32 in [0, 1].
      epsilon: largest change of a pixel.
      queries: at most, for each image; a misclassified image needs no more.
      seed: of the draws.

    Returns:
      The strongest pixels found (n, H, W, C) float32 in [0, 1], and their margins (n,).
    """
    rng = np.random.default_rng(seed)
    count, height, width, channels = images.shape
    stripes = rng.choice((-epsilon, epsilon), (count, 1, width, channels))
    every = np.arange(count)
    best = _pixels(images + stripes)
    margins = margins_fn(best, every)
    for query in range(1, queries):
        left = every[margins > 0]
        if not len(left):
            break
        side = _side(query / queries, height, width)
        tried = best[left].copy()
        for row, image in enumerate(left):
            top, first = rng.integers(height - side + 1), rng.integers(width - side + 1)
            place = (slice(top, top + side), slice(first, first + side))
            sign = rng.choice((-epsilon, epsilon), channels)
            tried[row][place] = images[image][place] + sign
        tried = _pixels(tried)
        found = margins_fn(tried, left)
        better = found < margins[left]
        best[left[better]], margins[left[better]] = tried[better], found[better]
    return best, margins


def _side(progress: float, height: int, width: int) -> int:
    """Returns the side of the squares in pixels once this share of the queries is spent."""
    halvings = sum(progress * _PAPER > halving for halving in _HALVINGS)
    side = round((_SHARE / 2**halvings * height * width) ** 0.5)
    return min(max(side, 1), height, width)


def _pixels(points: np.ndarray) -> np.ndarray:
    return np.clip(points, 0.0, 1.0).astype(np.float32)
