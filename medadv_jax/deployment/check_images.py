"""Images that an export is checked on, and that 8-bit programs are calibrated on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from medadv_jax.config import read_saved_config
from medadv_jax.data.images import BadImageError
from medadv_jax.data.loader import load_dataset
from medadv_jax.deployment.model import Model
from medadv_jax.deployment.predict_files import find_files
from medadv_jax.errors import UserError
from medadv_jax.files import read_json

COUNT = 100
RANDOM = "random pixels"


class Images(NamedTuple):
    """Images (n, S, S, 3) uint8, and where they come from."""

    pixels: np.ndarray
    origin: str


def choose_images(model: Model, path: Path, folder: Path | None, count: int = COUNT) -> Images:
    """Returns at most `count` images; of random pixels 100.

    Args:
      model: that they are for.
      path: of the model; a run whose data are at hand gives its first validation images.
      folder: of image files, which come first; None: none.

    Raises:
      UserError: a folder without an image.
    """
    if folder is not None:
        return Images(_read(model, folder, count), f"files of {folder.name}")
    if (path / "splits.json").is_file():
        try:
            return Images(_validation(path, count), "validation images of the run")
        except UserError:  # its data are not at hand
            pass
    return random_images(model)


def random_images(model: Model) -> Images:
    """Returns images of uniformly random pixels, for want of better ones."""
    shape = (COUNT, model.image_size, model.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Images(pixels, RANDOM)


def split_images(images: Images) -> tuple[np.ndarray, Images]:
    """Returns images to calibrate on (m, S, S, 3), every other one, and the rest to check on."""
    return images.pixels[::2], images._replace(pixels=images.pixels[1::2])


def _read(model: Model, folder: Path, count: int) -> np.ndarray:
    found = []
    for path in find_files([folder]):
        try:
            found.append(model.read(path))
        except (BadImageError, OSError):
            continue  # predict.py names those
        if len(found) == count:
            break
    if not found:
        raise UserError(f"--images={folder}: none of its files is an image; give another folder")
    return np.stack(found)


def _validation(run: Path, count: int) -> np.ndarray:
    config = ConfigDict(read_saved_config(run / "config.json")["config"])
    dataset = load_dataset(config.data)
    wanted = {*read_json(run / "splits.json")["validation"]}
    rows = [i for i, example in enumerate(dataset.examples) if example.id in wanted]
    chosen = np.random.default_rng(0).permutation(rows)[:count]  # of all classes
    return np.stack([dataset.source[int(i)] for i in chosen])
