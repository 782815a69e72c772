"""Training on classes of different sizes: weights of the loss, or images drawn class by class."""

import numpy as np


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the weight n / (K · n_k) of each class, (K,) float32; their mean over images is 1.

    Args:
      labels: (n,) of the training images, 0 to K - 1.
      num_classes: K.
    """
    counts = np.bincount(labels, minlength=num_classes)
    return (len(labels) / (num_classes * np.maximum(counts, 1))).astype(np.float32)


def draw_balanced(indices: np.ndarray, labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the images of an epoch: as many as there are, the same number of each class.

    Within a class, images are drawn equally often, or differ by one. What does not divide by the
    number of classes goes to other classes in each epoch.

    Args:
      indices: (n,) positions of the training images.
      labels: (n,) their labels.
      seed, epoch: the draw depends on these alone.
    """
    rng = np.random.default_rng((seed, epoch))
    classes = rng.permutation(np.unique(labels))
    sizes = np.full(len(classes), len(indices) // len(classes))
    sizes[: len(indices) % len(classes)] += 1
    drawn = [
        _draw(indices[labels == label], size, rng)
        for label, size in zip(classes, sizes, strict=True)
    ]
    return np.concatenate(drawn)


def _draw(images: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `size` images: all of them as often as there is room, then some at random."""
    times, rest = divmod(size, len(images))
    return np.concatenate([np.tile(images, times), rng.permutation(images)[:rest]])
