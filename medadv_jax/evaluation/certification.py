"""Certificates of smoothed classifiers: CERTIFY of Cohen et al. (2019), section 3.2.2.

    counter = NoisyCounter(logits_fn, variables, make_noise(0.25), num_classes=2)
    for certificate in certify(counter, images, Settings(), key): ...

A certificate is a promise about every 8-bit image within an L2 radius: the smoothed classifier
names the same class there. Each promise is wrong with a probability of at most α.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # `stats` is loaded at its first use: half a second

from medadv_jax.attacks.lanes import fingerprint
from medadv_jax.defenses.smoothing import LEVELS, Noise, draw_noise, sampling_error
from medadv_jax.evaluation.certificates import ABSTAINS, Certificate, Settings


def lower_bound(count: int, draws: int, alpha: float) -> float:
    """Returns the lower end of the one-sided interval of Clopper & Pearson (1934) for a
    probability, with confidence 1 - α."""
    return float(scipy.stats.beta.ppf(alpha, count, draws - count + 1)) if count else 0.0


def certified_radius(probability: float, sigma: float) -> float:
    """Returns the L2 radius σ · Φ⁻¹(p) (Cohen et al. 2019, eq. 3 with p_B = 1 - p_A), in the unit
    of σ; 0 for p ≤ 1/2."""
    return sigma * float(scipy.stats.norm.ppf(probability)) if probability > 0.5 else 0.0


class NoisyCounter:
    """The compiled program that counts the classes of noisy copies, made and counted on the device.

    A row of its batch is any image and any run of draws, so images share batches. Draw i of an
    image depends on the key, the image's own pixels and i alone.

    Args of the constructor:
      logits_fn: (variables, pixels (S, H, W, C)) -> logits (S, K); treats every image alone. Pixels
        are integers / 255, with noise, and go beyond [0, 1].
      variables: of `logits_fn`.
      noise: from `make_noise`.
      num_classes: K.
      slots: S, noisy copies at a time.
      block: draws of a row in one call of the program.
      put: places arrays on the devices, split along their first axes.
    """

    def __init__(
        self,
        logits_fn: Callable[[Any, jax.Array], jax.Array],
        variables: Any,
        noise: Noise,
        num_classes: int,
        slots: int = 32,
        block: int = 25,
        put: Callable[[Any], Any] = jax.device_put,
    ):
        self.noise, self.num_classes = noise, num_classes
        self.slots, self.block = slots, block
        self._variables, self._put = variables, put

        def count(
            variables: Any, images: jax.Array, keys: jax.Array, number: jax.Array, last: jax.Array
        ) -> jax.Array:
            own = jax.vmap(jax.random.fold_in)(keys, number)
            drawn = jax.vmap(lambda each: draw_noise(noise, each, images.shape[1:]))(own)
            pixels = (images.astype(jnp.int32) + drawn).astype(jnp.float32) / LEVELS
            named = jnp.argmax(logits_fn(variables, pixels), axis=-1)
            found = jax.nn.one_hot(named, num_classes, dtype=jnp.int32)
            return found * (number < last)[:, None]

        def make_keys(images: jax.Array, key: jax.Array) -> jax.Array:
            return jax.vmap(lambda image: jax.random.fold_in(key, fingerprint(image)))(images)

        self._count, self._make_keys = jax.jit(count), jax.jit(make_keys)

    def count(
        self, images: np.ndarray, first: np.ndarray, last: np.ndarray, key: jax.Array
    ) -> np.ndarray:
        """Returns the classes of draws first … min(last, first + block) - 1 of S images (S, H, W,
        C) uint8, counted (S, K)."""
        images, last = self._put((images, last.astype(np.int32)))
        keys = self._make_keys(images, key)
        # A loop within the program would cost more: XLA's convolutions are slower there on CPUs.
        found = [
            self._count(self._variables, images, keys, self._put(first + number), last)
            for number in range(self.block)
        ]
        return np.sum(jax.device_get(found), axis=0)


class _Progress:
    """The draws of one image so far."""

    def __init__(self, image: int, num_classes: int):
        self.image, self.asked = image, 0
        self.selected = np.zeros(num_classes, np.int64)
        self.counts = np.zeros(num_classes, np.int64)

    def next_block(self, settings: Settings, block: int) -> tuple[int, int] | None:
        """Returns (first, end) of the draws to ask for next; None: all have been asked for."""
        total = settings.selection + settings.draws
        if self.asked >= total:
            return None
        end = settings.selection if self.asked < settings.selection else total
        first, self.asked = self.asked, min(self.asked + block, end)
        return first, end


def certify(
    counter: NoisyCounter, images: np.ndarray, settings: Settings, key: jax.Array
) -> Iterator[Certificate]:
    """Certifies images (n, H, W, C) uint8, any n; yields a certificate when it is done.

    The radius needs all draws. Abstaining does not: an image ends when even a network that names
    the selected class in all draws that are left could not bring the bound above 1/2, so an early
    end never changes what is promised. Counts depend on neither batch nor order.

    Raises:
      ValueError: the images are not uint8.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images: {images.dtype}, and the guarantee is one of 8-bit images: uint8")
    error = 2 * sampling_error(counter.noise, images[0].size) if len(images) else 0.0
    needed = _needed(settings, error)
    waiting = [_Progress(i, counter.num_classes) for i in range(len(images))][::-1]
    working: list[_Progress] = []
    while working or waiting:
        while waiting and len(working) < counter.slots:
            working.append(waiting.pop())
        rows = _share_rows(working, counter, settings)
        owners, first, last = (np.array(part) for part in zip(*rows, strict=True))
        held = images[[working[owner].image for owner in owners]]
        whole = np.arange(counter.slots) % len(rows)
        found = counter.count(held[whole], first[whole], last[whole], key)
        done: dict[int, Certificate] = {}
        for owner, start, counts in zip(owners, first, found, strict=False):
            if owner not in done:
                ended = _add(working[owner], start, counts, settings, counter, needed, error)
                if ended is not None:
                    done[owner] = ended
        yield from done.values()
        working = [each for owner, each in enumerate(working) if owner not in done]


def _needed(settings: Settings, error: float) -> int:
    """Returns the smallest count whose bound lies above 1/2; one more than the draws if none."""
    low, high = 0, settings.draws + 1
    while low < high:
        middle = (low + high) // 2
        if lower_bound(middle, settings.draws, settings.alpha) - error > 0.5:
            high = middle
        else:
            low = middle + 1
    return low


def _share_rows(
    working: Sequence[_Progress], counter: NoisyCounter, settings: Settings
) -> list[tuple[int, int, int]]:
    """Returns (position in `working`, first draw, end of its draws) of at most S rows: one for each
    image, and more in turn while rows are free."""
    rows: list[tuple[int, int, int]] = []
    while len(rows) < counter.slots:
        before = len(rows)
        for owner, each in enumerate(working):
            block = each.next_block(settings, counter.block) if len(rows) < counter.slots else None
            if block is not None:
                rows.append((owner, *block))
        if len(rows) == before:
            break
    return rows


def _add(
    progress: _Progress,
    first: int,
    counts: np.ndarray,
    settings: Settings,
    counter: NoisyCounter,
    needed: int,
    error: float,
) -> Certificate | None:
    """Adds the counts of the draws from `first`; returns the certificate if that was the last."""
    if first < settings.selection:
        progress.selected += counts
        return None
    progress.counts += counts
    selected, done = int(progress.selected.argmax()), int(progress.counts.sum())
    count = int(progress.counts[selected])
    left = settings.draws - done
    tallies = progress.selected.copy(), progress.counts.copy()
    if count + left < needed:
        return Certificate(progress.image, ABSTAINS, 0.0, *tallies)
    if left:
        return None
    probability = lower_bound(count, settings.draws, settings.alpha) - error
    radius = certified_radius(probability, counter.noise.sigma)
    return Certificate(progress.image, selected, radius, *tallies)
