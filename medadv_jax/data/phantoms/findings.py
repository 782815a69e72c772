"""A generated stand-in for ChestX-ray14, in the layout of the public download.

Each of the 14 findings is a bright spot at a place of its own in the lungs of a drawn chest. The
signs have nothing to do with the findings' names, and nothing is learnt about medicine.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from medadv_jax.data.chest_xray14 import FINDINGS
from medadv_jax.data.phantoms.xray import draw_findings

_HEADER = (
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
    "View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", "",
)  # fmt: skip
_SHARE = 0.25  # of the patients that have a finding, for each of them
_SEEN = 0.8  # chance that an image of such a patient shows it
_TESTED = 4  # every fourth patient is in the official test list
_MOST = 5  # images of a patient


def write_chest_xray14(folder: Path, num_images: int, image_size: int = 128, seed: int = 0) -> None:
    """Writes table, images and official lists into a folder.

    Args:
      folder: made if missing.
      num_images: in the folders `images_001` and `images_002`.
      image_size: height and width in pixels.
      seed: a non-negative integer.
    """
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    for number, (patient, visit, found) in enumerate(_images(num_images, seed)):
        name = f"{patient:08d}_{visit:03d}.png"
        part = folder / f"images_{1 + 2 * number // num_images:03d}" / "images"
        part.mkdir(parents=True, exist_ok=True)
        of_patient, of_image = (
            np.random.default_rng([seed, 1, patient, *of]) for of in ((), (1 + visit,))
        )
        picture = draw_findings(found, len(FINDINGS), of_patient, of_image, image_size)
        Image.fromarray(picture).save(part / name)
        labels = "|".join(FINDINGS[k] for k in found) or "No Finding"
        size, spacing = (image_size,) * 2, (0.143,) * 2
        rows.append((name, labels, visit, patient, 50, "M", "PA", *size, *spacing, ""))
        lists["train_val_list.txt" if patient % _TESTED else "test_list.txt"].append(name)
    with (folder / "Data_Entry_2017.csv").open("w", newline="") as file:
        file.write(",".join(_HEADER) + "\n")
        csv.writer(file, lineterminator="\n").writerows(rows)
    for file, names in lists.items():
        (folder / file).write_text("\n".join(names) + "\n")


def _images(count: int, seed: int) -> Iterator[tuple[int, int, list[int]]]:
    """Yields patient, number of the visit, and findings of each image."""
    rng, made, patient = np.random.default_rng([seed, 0]), 0, 0
    while made < count:
        patient += 1
        ill = rng.random(len(FINDINGS)) < _SHARE * rng.integers(0, 2)  # every other one is well
        for visit in range(min(int(rng.integers(1, _MOST + 1)), count - made)):
            shown = ill & (rng.random(len(FINDINGS)) < _SEEN)
            yield patient, visit, np.flatnonzero(shown).tolist()
            made += 1
