"""Randomised smoothing: Gaussian noise on 8-bit images, and the training of networks for it.

    noise = make_noise(sigma=0.25)
    noisy = images + draw_noise(noise, key, images.shape)     # int32 levels, images uint8

A smoothed classifier names the class that its network gives to most noisy copies of an image
(Cohen et al. 2019, "Certified adversarial robustness via randomized smoothing", eq. 1). Its
guarantee is one about exact Gaussian noise, which floating-point noise is not: attacks on that gap
exist (Jin et al. 2022, "Getting a-round guarantees"). So noise is drawn on integers here, as in
Voráček & Hein (2023, "Sound randomized smoothing in floating-point arithmetics", section 4): an
8-bit image is a vector of integers x, and rounding commutes with adding an integer,
round(x + ε) = x + round(ε). Smoothing "round, then classify" with exact Gaussian noise ε therefore
needs no more than the distribution of round(ε), which is known exactly:
P(round(ε) ≤ k) = Φ((k + 1/2) / σ). Draws follow it up to `sampling_error`, which is stated and
subtracted from every probability.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks import LogitsFn
from medadv_jax.config import Config
from medadv_jax.defenses.objectives import (
    Examples,
    Objective,
    classification_loss,
    clean_examples,
)
from medadv_jax.defenses.purification import purifier_loss

LEVELS = 255  # of a pixel of 1
_REACH = 9.0  # standard deviations; what lies beyond has probability 2·10⁻¹⁹
_THRESHOLD_ERROR = 2.0**-50  # of one probability Φ in float64, generously


class Noise(NamedTuple):
    """The distribution of round(ε), ε normal, as thresholds of a uniform number of 64 bits.

    Attributes:
      sigma: standard deviation in pixels of [0, 1].
      reach: the largest draw, in levels.
      high, low: (2 · reach,) uint32, the halves of P(round(ε) ≤ k) · 2⁶⁴ for k = -reach …
        reach - 1.
    """

    sigma: float
    reach: int
    high: np.ndarray
    low: np.ndarray


@functools.lru_cache
def make_noise(sigma: float) -> Noise:
    """Returns the noise of a standard deviation in pixels of [0, 1], above 0."""
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma:g}: must be a finite number above 0")
    levels = sigma * LEVELS
    reach = math.ceil(_REACH * levels)
    # Half of the thresholds: the others follow from symmetry, where Φ is close to 1.
    lower = [
        int(0.5 * math.erfc(-(k + 0.5) / (levels * math.sqrt(2))) * 2.0**64)
        for k in range(-reach, 0)
    ]
    thresholds = [*lower, *(2**64 - t for t in reversed(lower))]
    high, low = (np.array([part(t) for t in thresholds], np.uint32) for part in (_high, _low))
    return Noise(sigma, reach, high, low)


def _high(threshold: int) -> int:
    return min(threshold, 2**64 - 1) >> 32


def _low(threshold: int) -> int:
    return min(threshold, 2**64 - 1) & 0xFFFFFFFF


def sampling_error(noise: Noise, pixels: int) -> float:
    """Returns a bound on the total variation between the noise drawn on an image of `pixels` values
    and exact noise: by how much the probability of any event can differ."""
    return pixels * (2 * len(noise.high) * _THRESHOLD_ERROR + math.erfc(_REACH / math.sqrt(2)))


def draw_noise(noise: Noise, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns independent draws of round(ε) in levels, int32 of any shape.

    A draw is the number of thresholds that a uniform number of 64 bits reaches. Its upper 32 bits
    nearly always decide; only where they equal those of a threshold the lower ones are drawn.
    """
    high_key, low_key = jax.random.split(key)
    bits = jax.random.bits(high_key, shape, jnp.uint32).ravel()
    high, low = jnp.asarray(noise.high), jnp.asarray(noise.low)
    below, tied = _count_below(noise.high, bits)

    def resolve(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        counts, left = state
        place = jnp.argmax(left)
        rest = jax.random.bits(jax.random.fold_in(low_key, place), (), jnp.uint32)
        reached = jnp.sum((high == bits[place]) & (low <= rest))
        return counts.at[place].add(reached.astype(counts.dtype)), left.at[place].set(False)

    counts, _ = jax.lax.while_loop(lambda state: jnp.any(state[1]), resolve, (below, tied))
    return (counts - noise.reach).reshape(shape)


_BUCKET_BITS = 8  # of the mantissa: 256 buckets for each power of two


def _bucket(bits: Any, xp: Any) -> Any:
    """Returns the bucket of each uint32 (n,) -> int32 (n,): it rises with the number, and is finer
    towards both ends, as thresholds lie closer there. `xp` is numpy or jax.numpy."""
    upper = bits >> 31 == 1
    distance = xp.where(upper, ~bits, bits).astype(np.int32).astype(np.float32)
    shift = 23 - _BUCKET_BITS
    exponent = distance.view(np.int32) >> shift  # of 0: 0; of 1: that of the next line
    place = xp.maximum(exponent - ((127 << 23) >> shift) + 1, 0)
    return xp.where(upper, _NUM_BUCKETS - 1 - place, place)


_NUM_BUCKETS = 2 * ((31 << _BUCKET_BITS) + 2)  # 2³¹ - 1, rounded to float32, has exponent 31


def _count_below(high: np.ndarray, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns how many of the sorted thresholds `high`, uint32, lie below each of `bits`, uint32
    (n,), and whether one equals it: int32 (n,) and bool (n,).

    A table knows how many lie in lower buckets; those of the same bucket, mostly one, are compared.
    Binary search would read eleven thresholds for each draw.
    """
    bucket = _bucket(high, np)
    start = np.searchsorted(bucket, np.arange(_NUM_BUCKETS), side="left").astype(np.int32)
    alone = (_bucket(high - 1, np) != bucket) & (_bucket(high + 1, np) != bucket)
    # Where a bucket is one number, its thresholds are equal, and one comparison finds the tie.
    most = int(np.bincount(bucket[~alone], minlength=1).max(initial=1))
    padded = jnp.asarray(np.append(high, np.full(most, 2**32 - 1, np.uint32)))
    first = jnp.asarray(start)[_bucket(bits, jnp)]
    compared = [padded[first + j] for j in range(most)]
    below = sum((each < bits).astype(jnp.int32) for each in compared)
    tied = functools.reduce(jnp.logical_or, (each == bits for each in compared))
    return first + below, tied


def with_noise(
    batches: Iterable[Mapping[str, Any]], sigma: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Yields batches whose images (B, H, W, C) are noisy, in levels: int16, also beyond 0 … 255.

    An image's noise depends on the seed and on its `index` alone.
    """
    noise, key = make_noise(sigma), jax.random.key(seed)

    @jax.jit
    def draw(images: jax.Array, index: jax.Array) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        drawn = jax.vmap(lambda each: draw_noise(noise, each, images.shape[1:]))(keys)
        return (images.astype(jnp.int32) + drawn).astype(jnp.int16)

    for batch in batches:
        yield {**batch, "image": np.asarray(draw(batch["image"], batch["index"]))}


def smoothed_objective(config: Config) -> Objective:
    """Returns the objective of the network of a smoothed classifier: the cross-entropy on noisy
    images (Cohen et al. 2019, section 3.3)."""
    examples = functools.partial(noisy_examples, sigma=config.defense.sigma)
    return Objective(examples, classification_loss)


def denoised_objective(config: Config) -> Objective:
    """Returns the objective of a purifier that removes the noise before a network that is not
    trained: squared error and the network's agreement (Salman et al. 2020, "Denoised smoothing: a
    provable defense for pretrained classifiers", eq. 3 and 5); `config.purifier.guidance` weighs
    the second."""
    examples = functools.partial(noisy_examples, sigma=config.defense.sigma)
    loss = functools.partial(purifier_loss, objective="guided", guidance=config.purifier.guidance)
    return Objective(examples, loss, gradient="bare")


def noisy_examples(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    sigma: float,
) -> Examples:
    """Returns images with Gaussian noise, not cut to [0, 1], as a smoothed classifier sees them.

    An `ExamplesFn` of one column; the noise does not depend on `logits_fn` and `labels`.
    """
    del logits_fn, labels
    noisy = images + sigma * jax.random.normal(key, images.shape, images.dtype)
    return clean_examples(noisy, mask)
