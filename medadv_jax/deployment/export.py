"""Exports a model for programs without this package: uint8 pixels in, probabilities and logits out.

    export_model(model, Path("exported"), ["stablehlo", "onnx"], images)

Convolutions are exported in their plain form, for any platform; preprocessing is inside. Every file
is run on `images` and compared with the model before the folder appears under its name.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from medadv_jax.classifier import to_pixels
from medadv_jax.deployment import read_stablehlo
from medadv_jax.deployment.card import card_text
from medadv_jax.deployment.check_images import Images
from medadv_jax.deployment.model import Model
from medadv_jax.deployment.onnx_program import run_onnx, write_onnx
from medadv_jax.errors import UserError
from medadv_jax.files import atomic_folder, sha256

DESCRIPTION = "export.json"
PLATFORMS = ("cpu", "cuda", "tpu")
_LIMIT = 1e-4  # of logits; larger differences are a fault of the export

# images (B, S, S, 3) uint8 -> probabilities (B, K), logits (B, K)
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A file that predicts.

    Attributes:
      files: names, the first is the program.
      run: the program, read back from its files.
      use: how to use it, for the card.
    """

    files: Sequence[str]
    run: Runner
    use: str


def export_model(model: Model, folder: Path, formats: Sequence[str], images: Images) -> list[str]:
    """Writes a folder with a program of each format, its card and `export.json`.

    Args:
      model: what is exported.
      folder: its path; a folder that an export has written is replaced.
      formats: keys of `FORMATS`.
      images: from `choose_images`.

    Returns:
      A line for each program: its size, and how far its logits are from the model's.

    Raises:
      UserError: an unknown format, a library that is missing, a folder that holds something else,
        or logits that differ by more than 1e-4.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        given = ",".join(formats)
        raise UserError(f"--format={given}: known are {', '.join(FORMATS)}; give one or more")
    refuse_other(folder)
    pixels = images.pixels
    expected = model.logits_of(pixels)
    found: dict[str, Any] = {}
    with atomic_folder(folder) as beside:
        for name in formats:
            artefact = FORMATS[name](model.with_conv_impl("plain"), beside)
            found[name] = _check(artefact, beside, pixels, expected, images.origin)
        content = model.description.to_json() | {"exports": found}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (beside / DESCRIPTION).write_text(text, encoding="utf-8")
        card = f"{card_text(model.description)}\n## Exported programs\n\n{_describe(found)}\n"
        (beside / "README.md").write_text(card, encoding="utf-8")
    return [_line(name, entry) for name, entry in found.items()]


def refuse_other(folder: Path) -> None:
    """Raises UserError if a folder holds something else than an export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output={folder}: is a file; give another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DESCRIPTION).is_file():
        raise UserError(f"--output={folder}: holds other files; give another folder")


def _check(
    artefact: Artefact, folder: Path, pixels: np.ndarray, expected: np.ndarray, origin: str
) -> dict[str, Any]:
    """Returns the entry of `export.json`; UserError if the logits are not the model's."""
    probability, logits = artefact.run(pixels)
    difference = float(np.abs(logits - expected).max())
    if not difference <= _LIMIT:
        raise UserError(
            f"{artefact.files[0]}: its logits differ from the model's by {difference:.2g}, more"
            f" than {_LIMIT:g}: the export is wrong; nothing is written"
        )
    np.testing.assert_allclose(probability, jax.nn.softmax(logits), atol=1e-5)
    one = artefact.run(pixels[:1])[1]  # any batch size
    agree = float((logits.argmax(1) == expected.argmax(1)).mean())
    return {
        "files": {name: sha256((folder / name).read_bytes()) for name in artefact.files},
        "bytes": sum((folder / name).stat().st_size for name in artefact.files),
        "images": len(pixels),
        "images_are": origin,
        "largest_difference_of_logits": max(difference, float(np.abs(one - logits[:1]).max())),
        "same_class": agree,
        "use": artefact.use,
    }


def _line(name: str, entry: dict[str, Any]) -> str:
    images = f"{entry['images']} images ({entry['images_are']})"
    return (
        f"{name}: {entry['bytes'] / 1e6:.1f} MB; on {images}"
        f" its logits differ by at most {entry['largest_difference_of_logits']:.1e},"
        f" the class is the same on {entry['same_class']:.1%}"
    )


def _describe(found: dict[str, Any]) -> str:
    lines = [
        "Input: images (B, S, S, 3) uint8, any B. Outputs: probabilities and logits, (B, K)"
        " float32. Normalisation and purifier are inside.\n"
    ]
    lines += [f"- {_line(name, entry)}. {entry['use']}" for name, entry in found.items()]
    return "\n".join(lines)


def predict_function(model: Model) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns (variables, images (B, S, S, 3) uint8) -> probabilities (B, K), logits (B, K)."""

    def run(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.classifier.logits(variables, to_pixels(images), model.gradient)
        return jax.nn.softmax(logits, axis=-1), logits

    return run


def _export_stablehlo(model: Model, folder: Path) -> Artefact:
    """Writes `model.stablehlo`, `weights.npz` and the reader; serialised by `jax.export`."""
    predict, size = predict_function(model), model.image_size
    weights = {"/".join(k): np.asarray(v) for k, v in flatten_dict(model.variables).items()}

    def run(weights: dict[str, jax.Array], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        variables = unflatten_dict({tuple(name.split("/")): v for name, v in weights.items()})
        return predict({"batch_stats": {}, **variables}, images)

    (count,) = export.symbolic_shape("b")
    abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in weights.items()}
    exported = export.export(jax.jit(run), platforms=PLATFORMS)(
        abstract, jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)
    )
    (folder / "model.stablehlo").write_bytes(exported.serialize())
    np.savez(folder / "weights.npz", **weights)  # pyright: ignore[reportArgumentType]
    reader = Path(read_stablehlo.__file__)
    shutil.copyfile(reader, folder / reader.name)

    def call(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability, logits = read_stablehlo.load(folder)(images)
        return np.asarray(probability), np.asarray(logits)

    files = ("model.stablehlo", "weights.npz", reader.name)
    return Artefact(files, call, "`python read_stablehlo.py images.npy` (jax, flatbuffers)")


def _export_onnx(model: Model, folder: Path) -> Artefact:
    """Writes `model.onnx`."""
    path = folder / "model.onnx"
    write_onnx(model, path)
    return Artefact((path.name,), functools.partial(run_onnx, path), f"onnxruntime: {_ONNX_USE}")


_ONNX_USE = '`InferenceSession("model.onnx").run(None, {"images": images})`'
FORMATS: dict[str, Callable[[Model, Path], Artefact]] = {
    "stablehlo": _export_stablehlo,
    "onnx": _export_onnx,
}
