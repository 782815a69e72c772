"""Warnings about test sets that are too small for the numbers to mean much."""

from collections.abc import Sequence

import numpy as np

MIN_IMAGES = 100  # test images
MIN_GROUPS = 10  # patients or cases with test images of a class


def sample_size_warnings(
    labels: Sequence[int] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    class_names: Sequence[str] = ("negative", "positive"),
) -> list[str]:
    """Returns why the numbers may mean little, whatever the self-checks say.

    Args:
      labels: (n,) integer, 0 … K-1, of the test images.
      groups: (n,) the patient or case of each.
      class_names: of label 0, 1, …
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    warnings = []
    counts = [len(np.unique(groups[labels == label])) for label in range(len(class_names))]
    if len(labels) < MIN_IMAGES:
        warnings.append(f"{len(labels)} test images are too few (fewer than {MIN_IMAGES})")
    if min(counts) < MIN_GROUPS:
        *first, last = [f"{n} {name}" for n, name in zip(counts, class_names, strict=True)]
        warnings.append(
            f"{', '.join(first)} and {last} patients (groups) in the test split are too few"
            f" (fewer than {MIN_GROUPS} of a class)"
        )
    return warnings
