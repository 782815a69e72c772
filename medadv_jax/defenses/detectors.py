"""Detectors of adversarial images: scores, higher for suspicious images, and their quality.

    scores = DETECTORS["squeezing"](classifier, variables, pixels)           # on the device
    threshold = threshold_at(scores_of_clean_validation_images, 0.05)        # numpy from here on
    detection_summary(scores_of_clean_test_images, scores_of_attacked, threshold)

A score is differentiable, so that an adaptive attacker can lower it; rounding has the gradient of
the identity. To add a detector, write a function like those here and name it in `DETECTORS`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.classifier import Classifier, Variables
from medadv_jax.errors import UserError

# (classifier, variables, pixels (B, H, W, 3) float32 in [0, 1]) -> scores (B,) float32
Detector = Callable[[Classifier, Variables, jax.Array], jax.Array]


def _reconstruction(classifier: Classifier, variables: Variables, pixels: jax.Array) -> jax.Array:
    """Mean absolute change of a pixel by the purifier (Meng & Chen 2017)."""
    purified = _purify("reconstruction", classifier, variables, pixels)
    return jnp.mean(jnp.abs(purified - pixels), axis=(1, 2, 3))


def _disagreement(classifier: Classifier, variables: Variables, pixels: jax.Array) -> jax.Array:
    """L1 distance of the probabilities with and without the purifier, from 0 to 2.

    After Meng & Chen (2017), who take the Jensen-Shannon divergence.
    """
    purified = _purify("disagreement", classifier, variables, pixels)
    return _distance(classifier, variables, pixels, purified)


def _squeezing(classifier: Classifier, variables: Variables, pixels: jax.Array) -> jax.Array:
    """Largest L1 distance of the probabilities before and after a squeezer (Xu et al. 2018).

    Feature Squeezing with the squeezers of their ImageNet detector but for non-local means. It
    needs no purifier.
    """
    squeezed = [squeeze(pixels) for squeeze in SQUEEZERS.values()]
    distances = [_distance(classifier, variables, pixels, other) for other in squeezed]
    return jnp.max(jnp.stack(distances), axis=0)


def _purify(
    name: str, classifier: Classifier, variables: Variables, pixels: jax.Array
) -> jax.Array:
    if classifier.purifier is None:
        raise UserError(f"detector {name!r} needs a purifier; without one take 'squeezing'")
    return classifier.purify(variables, pixels)


def _distance(
    classifier: Classifier, variables: Variables, pixels: jax.Array, others: jax.Array
) -> jax.Array:
    """L1 distance of the bare network's probabilities on two batches, (B,)."""
    first, second = (
        jax.nn.softmax(classifier.logits(variables, x, gradient="bare").astype(jnp.float32))
        for x in (pixels, others)
    )
    return jnp.sum(jnp.abs(first - second), axis=-1)


def reduce_depth(pixels: jax.Array, bits: int = 5) -> jax.Array:
    """Rounds pixels in [0, 1] to 2**bits levels; its gradient is the identity's."""
    steps = 2**bits - 1
    return pixels + jax.lax.stop_gradient(jnp.round(pixels * steps) / steps - pixels)


def smooth_median(pixels: jax.Array) -> jax.Array:
    """Takes the median of each pixel, its left, its upper and its upper left one, (B, H, W, C).

    Of the two values in the middle the larger one, and beyond the border the border's own pixel:
    as `scipy.ndimage.median_filter` with `size=2`, which Xu et al. used.
    """
    padded = jnp.pad(pixels, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="edge")
    above, below = padded[:, :-1], padded[:, 1:]
    a, b, c, d = above[:, :, :-1], above[:, :, 1:], below[:, :, :-1], below[:, :, 1:]
    # The second largest of four without sorting: either loses to one alone, in its own pair or
    # in the final.
    losers = jnp.maximum(jnp.minimum(a, b), jnp.minimum(c, d))
    return jnp.maximum(losers, jnp.minimum(jnp.maximum(a, b), jnp.maximum(c, d)))


def threshold_at(scores: np.ndarray, false_positive_rate: float) -> float:
    """Returns the lowest threshold that flags at most this share of clean images.

    Flagged is what lies above the threshold. Equal scores are flagged together or not at all, so
    that the share may fall short of the rate, but never exceeds it.

    Args:
      scores: (n,) finite, of clean validation images.
      false_positive_rate: from 0 to below 1.

    Raises:
      UserError: for an impossible rate.
      ValueError: for no scores, or scores that are not finite.
    """
    if not 0 <= false_positive_rate < 1:
        raise UserError(
            f"false_positive_rate={false_positive_rate}: give a share from 0 to below 1"
        )
    scores = np.sort(_checked(scores))
    # 0.29 × 100 is 28.999…: the tolerance is far below one image's share.
    allowed = int(np.floor(false_positive_rate * len(scores) + 1e-9))
    return float(scores[len(scores) - 1 - allowed])


def detection_summary(
    clean: np.ndarray, attacked: np.ndarray, threshold: float
) -> dict[str, float]:
    """Returns the quality of a detector on images that did not choose its threshold.

    Args:
      clean: (n,) scores of clean images.
      attacked: (m,) scores of attacked ones.
      threshold: from `threshold_at`; flagged is what lies above it.

    Returns:
      auc: the chance that an attacked image scores higher than a clean one, ties counting half;
      true_positive_rate: the share of attacked images flagged; false_positive_rate: of clean ones.

    Raises:
      ValueError: for no scores, or scores that are not finite.
    """
    from sklearn.metrics import roc_auc_score  # lazily: it takes a second

    clean, attacked = _checked(clean), _checked(attacked)
    truth = np.repeat([0, 1], [len(clean), len(attacked)])
    return {
        "auc": float(roc_auc_score(truth, np.concatenate([clean, attacked]))),
        "true_positive_rate": float(np.mean(attacked > threshold)),
        "false_positive_rate": float(np.mean(clean > threshold)),
    }


def _checked(scores: np.ndarray) -> np.ndarray:
    if not (scores.size and np.isfinite(scores).all()):
        raise ValueError(f"{scores.size} scores, of which {np.isfinite(scores).sum()} are finite")
    return scores


SQUEEZERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "depth": reduce_depth,
    "median": smooth_median,
}

DETECTORS: dict[str, Detector] = {
    "reconstruction": _reconstruction,
    "disagreement": _disagreement,
    "squeezing": _squeezing,
}

NEED_PURIFIER = ("reconstruction", "disagreement")
