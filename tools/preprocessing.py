"""Compares our preprocessing of image files with torchvision's and Keras'.

    python -m tools.preprocessing                    # needs torch, torchvision, keras
    python -m tools.preprocessing --folder=FOLDER    # these files instead of generated ones

Files go through `medadv_jax/data/images.py` and the classifier's normalisation, and through the
libraries' own preprocessing. Differences are in steps of 8-bit pixels, normalisation undone. All
use Pillow's antialiased bilinear filter, except for Keras' default. Rows:

  square       the largest centred square of the file, so that all crop the same pixels
  file         the file: torchvision scales and then crops at whole pixels, Keras crops at whole
               pixels and then scales, ours crops at fractions of pixels and then scales
  as published the libraries' defaults: torchvision keeps the inner 7/8 of the square, Keras takes
               the nearest pixel and does not keep the aspect ratio. Shown without a bound

Exits 1 if a row is above its bound.
"""

# pyright: reportMissingImports=false
# torch, torchvision and keras are no dependencies of this project; `make parity` installs them.

import dataclasses
import io
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from PIL import Image

from medadv_jax.classifier import NORMALIZATIONS, Classifier, to_pixels
from medadv_jax.data.images import read_square
from medadv_jax.data.phantoms import generate
from medadv_jax.models.pretrained import keras_names as keras_layout
from medadv_jax.models.pretrained.verify import without_fake_registration

_FOLDER = flags.DEFINE_string("folder", "", 'folder of JPEG and PNG files; "" generates some')
_SIZE = flags.DEFINE_integer("size", 224, "side of the square in pixels")

ENDINGS = (".jpeg", ".jpg", ".png")
GENERATED = {"xray": (640, 512), "histology": (600, 394)}  # kind -> width and height
_EQUAL = 0.01  # steps: rounding of the normalisation and its inverse in float32


class Inputs(nn.Module):
    """Replaces a network; returns its input."""

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the images."""
        return images


@dataclasses.dataclass(frozen=True)
class Row:
    """A library's preprocessing and the bounds of its difference from ours.

    Attributes:
      title: name in the table.
      normalization: a key of `NORMALIZATIONS`.
      theirs: the bytes of a file -> (S, S, 3), normalised.
      square: whether files are first cropped to squares.
      mean: bound of the mean difference in steps.
      largest: bound of the largest difference in steps.
    """

    title: str
    normalization: str
    theirs: Callable[[bytes], np.ndarray]
    square: bool
    mean: float = math.inf
    largest: float = math.inf


def our_inputs(content: bytes, size: int, normalization: str) -> np.ndarray:
    """Returns the input of our network for a file: (size, size, 3) float32."""
    pixels = to_pixels(jnp.asarray(read_square(content, size, "crop"))[None])
    return np.asarray(Classifier(Inputs(), normalization).logits({}, pixels))[0]


def steps(ours: np.ndarray, theirs: np.ndarray, normalization: str) -> np.ndarray:
    """Returns the differences of inputs (S, S, 3) in steps of 8-bit pixels."""
    std = np.asarray(NORMALIZATIONS[normalization].std)
    return np.abs(ours.astype(np.float64) - theirs) * std * 255


def centred_square(content: bytes) -> bytes:
    """Returns the largest centred square of an image file, as PNG."""
    with Image.open(io.BytesIO(content)) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return _encoded(image.convert("RGB").crop((left, top, left + side, top + side)), "png")


def _encoded(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def generated() -> Iterable[bytes]:
    """Yields JPEGs of generated X-rays (grey) and histology (colour), wider than high."""
    for kind, (width, height) in GENERATED.items():
        for example in generate(kind, 2, width, seed=0):
            image = Image.fromarray(example["image"]).crop((0, 0, width, height))
            yield _encoded(image.convert("L") if kind == "xray" else image, "jpeg")


def files(folder: str) -> Iterable[bytes]:
    """Yields the images below a folder, by name."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        sys.exit(f"--folder={folder}: no {', '.join(ENDINGS)} there; name another folder")
    for path in found:
        yield path.read_bytes()


# The libraries


def torchvision_transform(size: int, resize_size: int, tensor: bool) -> Callable[[bytes], Any]:
    """Returns torchvision's transform of its published weights, at this size.

    `tensor`: resizes a tensor by PyTorch's own filter; else a Pillow image by Pillow's.
    """
    import torch

    with without_fake_registration(torch):
        from torchvision import models
        from torchvision.transforms import functional
    published = models.ResNet50_Weights.IMAGENET1K_V1.transforms
    transform = published(crop_size=size, resize_size=resize_size)

    def run(content: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        result = transform(functional.pil_to_tensor(image) if tensor else image)
        return result.numpy().transpose(1, 2, 0)

    return run


def keras_transform(arch: str, size: int, **options: Any) -> Callable[[bytes], np.ndarray]:
    """Returns Keras' `load_img` with these options, then the network's own `preprocess_input`."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    preprocess = getattr(keras.applications, arch).preprocess_input

    def run(content: bytes) -> np.ndarray:
        image = keras.utils.load_img(io.BytesIO(content), target_size=(size, size), **options)
        return preprocess(keras.utils.img_to_array(image, dtype="float32"))

    return run


def torchvision_rows(size: int) -> list[Row]:
    """Returns torchvision's rows."""
    shrunk, by_tensor = (torchvision_transform(size, size, tensor) for tensor in (False, True))
    published = torchvision_transform(size, round(size * 256 / 224), False)
    return [
        Row("torchvision, square", "imagenet", shrunk, True, largest=_EQUAL),
        Row("torchvision, square, as a tensor", "imagenet", by_tensor, True, largest=1 + _EQUAL),
        Row("torchvision, file", "imagenet", shrunk, False, mean=2.0),
        Row("torchvision, as published", "imagenet", published, False),
    ]


def keras_rows(size: int) -> list[Row]:
    """Returns Keras' rows: every network on squares, ResNet50 on files."""
    same: dict[str, Any] = {"interpolation": "bilinear", "keep_aspect_ratio": True}
    names = keras_layout.NORMALIZATION
    kept = {arch: keras_transform(arch, size, **same) for arch in names}
    published = keras_transform("resnet50", size)
    return [
        *(
            Row(f"Keras, square, {arch}", names[arch], kept[arch], True, largest=_EQUAL)
            for arch in names
        ),
        Row("Keras, file", names["resnet50"], kept["resnet50"], False, mean=2.0),
        Row("Keras, as published", names["resnet50"], published, False),
    ]


def differences(row: Row, contents: Iterable[bytes], size: int) -> np.ndarray:
    """Returns the differences of all files in steps: (N, size, size, 3)."""
    chosen = [centred_square(content) if row.square else content for content in contents]
    name = row.normalization
    return np.stack(
        [steps(our_inputs(each, size, name), row.theirs(each), name) for each in chosen]
    )


def report(rows: Iterable[Row], contents: list[bytes], size: int) -> bool:
    """Prints a line for each row; returns whether all are within their bounds."""
    print(f"{len(contents)} files at {size} px; differences in steps of 8-bit pixels")
    titles = ("mean", "99 %", "largest", "equal")
    print(" " * 36 + "".join(f"{title:>10}" for title in titles) + "  bound")
    within = True
    for row in rows:
        found = differences(row, contents, size)
        good = bool(found.mean() <= row.mean and found.max() <= row.largest)  # NaN never is
        values = (found.mean(), np.quantile(found, 0.99), found.max())
        cells = "".join(f"{value:10.3f}" for value in values)
        bounds = {"mean": row.mean, "largest": row.largest}
        bound = ", ".join(f"{name} {value:g}" for name, value in bounds.items() if value < math.inf)
        print(f"{row.title:36}{cells}{(found < _EQUAL).mean():10.1%}  {bound}", end="")
        print("" if good else "  MISS")
        within &= good
    return within


def compare(sources: Iterable[str], contents: list[bytes], size: int) -> bool:
    """Compares with the given libraries; returns whether all differences are within bounds."""
    makers = {"torchvision": torchvision_rows, "keras": keras_rows}
    return report([row for source in sources for row in makers[source](size)], contents, size)


def main(argv: list[str]) -> None:
    """Prints the table; exits 1 on a miss."""
    del argv
    contents = list(files(_FOLDER.value) if _FOLDER.value else generated())
    sys.exit(0 if compare(("torchvision", "keras"), contents, _SIZE.value) else 1)


if __name__ == "__main__":
    app.run(main)
