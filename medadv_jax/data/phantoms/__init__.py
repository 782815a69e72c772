"""Generated images that stand in for the two data sets: chest X-rays and stained tissue.

With them everything runs without a download; results on them say nothing about medicine. As in
the real sets, a patient has several images that look alike (anatomy, exposure, stain, texture),
so a split by image leaks and a split by patient does not. The classes differ by a strong sign
that survives small perturbations (opacities, nuclei) and by a faint fine texture that does not.
They overlap, so no classifier is perfect.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from medadv_jax.data.phantoms import histology, xray

VERSION = "1.0.0"  # raise it when any pixel changes; part of the cache's fingerprint
KINDS = {"xray": xray.draw, "histology": histology.draw}
_IMAGES_PER_PATIENT = (3, 6)  # least and most


def generate(kind: str, num_images: int, image_size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Generates images with alternating labels.

    Image i depends on `kind`, `seed` and i alone, so more images begin with the same ones. It
    shows the same at every size, up to the finest detail that the size can hold.

    Args:
      kind: "xray" or "histology".
      num_images: how many.
      image_size: height and width in pixels, at least 32.
      seed: a non-negative integer.

    Yields:
      dicts with image (S, S, 3) uint8, label (0 or 1), id, group (the patient), magnification (0
      for X-rays, else 40, 100, 200 or 400), source_split (""), md5 (of the pixels), subtype ("").

    Raises:
      ValueError: an unknown kind, or images below 32 pixels.
    """
    if kind not in KINDS:
        raise ValueError(f"phantoms of kind {kind!r}: choose from {', '.join(KINDS)}")
    if image_size < 32:
        raise ValueError(f"phantoms of {image_size} pixels: at least 32 are needed")
    code = list(KINDS).index(kind)
    names: dict[tuple[int, int], str] = {}
    patients = [_patients(seed, code, label) for label in (0, 1)]
    for i in range(num_images):
        label = i % 2
        number = next(patients[label])
        group = names.setdefault((label, number), f"patient-{len(names):04d}")
        patient_rng = np.random.default_rng([seed, code, 1, label, number])
        image_rng = np.random.default_rng([seed, code, 2, i])
        image, magnification = KINDS[kind](label, patient_rng, image_rng, image_size)
        yield {
            "image": image,
            "label": label,
            "id": f"{kind}-{i:06d}",
            "group": group,
            "magnification": magnification,
            "source_split": "",
            "md5": hashlib.md5(image.tobytes()).hexdigest(),
            "subtype": "",
        }


def _patients(seed: int, code: int, label: int) -> Iterator[int]:
    """Yields the patient's number of each image of a class: 0, 0, 0, 0, 1, 1, 1, 2, …"""
    rng = np.random.default_rng([seed, code, 0, label])
    number = 0
    while True:
        for _ in range(rng.integers(*_IMAGES_PER_PATIENT, endpoint=True)):
            yield number
        number += 1
