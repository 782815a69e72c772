"""Building blocks of the phantoms at any size: coordinates, soft edges, random textures."""

from functools import lru_cache

import numpy as np

_FINEST = 128  # half-waves a side in a texture; a smaller image holds fewer


@lru_cache(maxsize=8)
def _cosines(size: int) -> np.ndarray:
    """Returns (size, K) float32 cosines at the pixel centres, K = min(size, 128)."""
    centres = (np.arange(size) + 0.5) / size
    waves = np.arange(min(size, _FINEST))
    return np.cos(np.pi * centres[:, None] * waves).astype(np.float32)


@lru_cache(maxsize=32)
def _band(low: float, high: float) -> np.ndarray:
    """Returns (128, 128) float32 amplitudes of a band; the resulting field has variance 1."""
    waves = np.arange(_FINEST)
    distance = np.hypot(waves[:, None], waves)
    inside = 1 / (1 + np.exp(np.clip(2 * (low - distance), -50, 50)))
    inside *= 1 / (1 + np.exp(np.clip(2 * (distance - high), -50, 50)))
    inside[0, 0] = 0
    norms = np.where(waves == 0, 1.0, 0.5)  # mean square of each cosine
    power = (inside**2 * norms[:, None] * norms).sum()
    return (inside / np.sqrt(power)).astype(np.float32)


def texture(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    """Returns a (size, size) float32 Gaussian field of mean 0 and variance 1.

    The same generator state gives the same field at every size, up to the finest detail that the
    size can hold.

    Args:
      rng: source of the random amplitudes.
      size: pixels a side.
      low: half-waves a side of the coarsest detail.
      high: half-waves a side of the finest detail, up to 128.
    """
    amplitudes = rng.standard_normal((_FINEST, _FINEST), dtype=np.float32) * _band(low, high)
    cosines = _cosines(size)
    finest = cosines.shape[1]
    return cosines @ amplitudes[:finest, :finest] @ cosines.T


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x (1, size) and y (size, 1) float32: the pixel centres in [0, 1]."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centres[None, :], centres[:, None]


def soft_edge(distance: np.ndarray, width: float) -> np.ndarray:
    """Returns a smooth step from 0 (outside, negative distances) to 1 (inside)."""
    return 0.5 + 0.5 * np.tanh(distance / width)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Clips to [0, 1] and rounds to 8 bits."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
