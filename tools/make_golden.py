"""Writes tests/golden/*.npz: outputs of torchvision and Keras with seeded weights.

    python -m tools.make_golden       # needs torch, torchvision, keras (see tools/parity.py)

The weights are not stored: `originals.seeded_weight` makes them from each array's name. A file
holds the names and shapes of the original's arrays, all logits, and a sample of the gradient and
of the running statistics, computed in float64. Together half a megabyte.
"""

import json
from pathlib import Path

import numpy as np
from absl import app, flags

from tools import originals
from tools.originals import BATCH, GRADIENT_STEP, STATISTICS_STEP

_OUTPUT = flags.DEFINE_string("output", "tests/golden", "folder of the files")

# Small, since the tests run them; some are odd. The head of Keras' VGG needs 7×7 maps.
SIZES = {
    ("torchvision", "vgg16"): 75,
    ("torchvision", "vgg19"): 64,
    ("torchvision", "resnet50"): 75,
    ("torchvision", "inception_v3"): 77,
    ("keras", "vgg16"): 224,
    ("keras", "vgg19"): 239,
    ("keras", "resnet50"): 64,
    ("keras", "inception_v3"): 75,
}


def golden(outputs: originals.Outputs) -> dict[str, np.ndarray]:
    """Returns the arrays of a file, rounded to float32."""
    shapes = {name: list(shape) for name, shape in outputs.shapes.items()}
    numbers = {
        "logits": outputs.logits,
        "gradient": outputs.gradient[:, ::GRADIENT_STEP, ::GRADIENT_STEP],
    } | {
        f"statistics:{name}": array[::STATISTICS_STEP] for name, array in outputs.statistics.items()
    }
    rounded = {name: array.astype(np.float32) for name, array in numbers.items()}
    return {"shapes": np.asarray(json.dumps(shapes)), **rounded}


def main(argv: list[str]) -> None:
    """Writes all files."""
    del argv
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for (source, arch), size in SIZES.items():
        images = originals.seeded_images(BATCH, size)
        outputs = originals.original_outputs(source, arch, images)
        path = folder / f"{source}_{arch}_{size}.npz"
        np.savez_compressed(path, **golden(outputs))  # pyright: ignore[reportArgumentType]
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    app.run(main)
