"""Exports a model for programs without this package: uint8 pixels in, probabilities and logits out.

    export_model(model, Path("exported"), ["stablehlo", "onnx"], images)
    export_model(model, Path("exported"), ["onnx"], images, "int8")

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
from jax import export, lax

from medadv_jax.classifier import to_pixels
from medadv_jax.deployment import read_stablehlo
from medadv_jax.deployment.card import card_text
from medadv_jax.deployment.check_images import RANDOM, Images, split_images
from medadv_jax.deployment.compression import Runner, quantize_onnx, to_bfloat16
from medadv_jax.deployment.model import Model
from medadv_jax.deployment.onnx_program import run_onnx, write_onnx
from medadv_jax.errors import UserError
from medadv_jax.files import atomic_folder, sha256

DESCRIPTION = "export.json"
PLATFORMS = ("cpu", "cuda", "tpu")
_LIMIT = 1e-4  # of logits; larger differences are a fault of the export
_SAME_CLASS = 0.9  # least share of images to which a compressed program gives the model's class
# compression -> the formats that have it
COMPRESSIONS = {"bfloat16": ("stablehlo",), "int8": ("onnx",)}


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


def export_model(
    model: Model, folder: Path, formats: Sequence[str], images: Images, compression: str = ""
) -> list[str]:
    """Writes a folder with a program of each format, its card and `export.json`.

    Args:
      model: what is exported.
      folder: its path; a folder that an export has written is replaced.
      formats: keys of `FORMATS`.
      images: from `choose_images`; for int8 every other one calibrates, and the rest check.
      compression: "": none; "bfloat16" or "int8", see `compression.py`.

    Returns:
      A line for each program: its size, and how far its answers are from the model's.

    Raises:
      UserError: an unknown format, or one without this compression, a library that is missing, a
        folder that holds something else, too few images to calibrate on, logits that differ by
        more than 1e-4, or, if compressed, other classes for more than a tenth of the images.
    """
    _check_formats(formats, compression)
    refuse_other(folder)
    calibration, plain = images.pixels[:0], model.with_conv_impl("plain")
    if compression == "int8":
        if images.origin == RANDOM:
            raise UserError(
                "--quantize=int8: calibrates on images, and the run's data are not at hand; give a"
                " folder of images by --images"
            )
        calibration, images = split_images(images)
    if compression == "bfloat16":
        plain = to_bfloat16(model)
    expected = model.logits_of(images.pixels)
    found: dict[str, Any] = {}
    with atomic_folder(folder) as beside:
        for name in formats:
            artefact = FORMATS[name](plain, beside)
            if compression == "int8":
                artefact = _quantize(artefact, beside, calibration)
            found[name] = _check(artefact, beside, expected, images, compression)
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


def choose_compression(dtype: str, quantize: str) -> str:
    """Returns `export_model`'s name of flags; UserError if there is none."""
    for flag, value, known in (
        ("dtype", dtype, ("float32", "bfloat16")),
        ("quantize", quantize, ("none", "int8")),
    ):
        if value not in known:
            raise UserError(f"--{flag}={value}: must be {' or '.join(known)}")
    asked = [value for value in (dtype, quantize) if value in COMPRESSIONS]
    if len(asked) > 1:
        raise UserError(f"--dtype={dtype} --quantize={quantize}: give one of them")
    return asked[0] if asked else ""


def _check_formats(formats: Sequence[str], compression: str) -> None:
    unknown, given = [name for name in formats if name not in FORMATS], ",".join(formats)
    if unknown or not formats:
        raise UserError(f"--format={given}: known are {', '.join(FORMATS)}; give one or more")
    able = COMPRESSIONS.get(compression, formats)
    if not {*formats} <= {*able}:
        raise UserError(f"--format={given}: {compression} exists for {', '.join(able)} alone")


def _quantize(artefact: Artefact, folder: Path, images: np.ndarray) -> Artefact:
    """Puts an 8-bit program in place of a float32 one, under its name."""
    path = folder / artefact.files[0]
    source = path.rename(folder / "float32.onnx")
    quantize_onnx(source, path, images)
    source.unlink()
    return artefact


def _check(
    artefact: Artefact, folder: Path, expected: np.ndarray, images: Images, compression: str
) -> dict[str, Any]:
    """Returns the entry of `export.json`; UserError if the answers are not the model's."""
    pixels = images.pixels
    probability, logits = artefact.run(pixels)
    difference = float(np.abs(logits - expected).max())
    agree = float((logits.argmax(1) == expected.argmax(1)).mean())
    if not (compression or difference <= _LIMIT):
        raise UserError(
            f"{artefact.files[0]}: its logits differ from the model's by {difference:.2g}, more"
            f" than {_LIMIT:g}: the export is wrong; nothing is written"
        )
    if not agree >= _SAME_CLASS:
        raise UserError(
            f"{artefact.files[0]}: {compression} gives the model's class to {agree:.0%} of"
            f" {len(pixels)} images, less than {_SAME_CLASS:.0%}; nothing is written"
        )
    np.testing.assert_allclose(probability, jax.nn.softmax(logits), atol=1e-5)
    one = artefact.run(pixels[:1])[1]  # any batch size
    moved = float(np.abs(probability - np.asarray(jax.nn.softmax(expected))).max())
    return {
        "compression": compression or "none",
        "files": {name: sha256((folder / name).read_bytes()) for name in artefact.files},
        "bytes": sum((folder / name).stat().st_size for name in artefact.files),
        "images": len(pixels),
        "images_are": images.origin,
        "largest_difference_of_logits": max(difference, float(np.abs(one - logits[:1]).max())),
        "largest_difference_of_probabilities": moved,
        "same_class": agree,
        "use": artefact.use,
    }


def _line(name: str, entry: dict[str, Any]) -> str:
    images = f"{entry['images']} images ({entry['images_are']})"
    what, kind = "logits", entry["compression"]
    if kind != "none":
        name, what = f"{name}, {kind}", "probabilities"
    return (
        f"{name}: {entry['bytes'] / 1e6:.1f} MB; on {images}"
        f" its {what} differ by at most {entry[f'largest_difference_of_{what}']:.1e},"
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
    weights = {"/".join(k): _pack(np.asarray(v)) for k, v in flatten_dict(model.variables).items()}

    def run(weights: dict[str, jax.Array], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        flat = {tuple(name.split("/")): _unpack(value) for name, value in weights.items()}
        return predict({"batch_stats": {}, **unflatten_dict(flat)}, images)

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


def _pack(weights: np.ndarray) -> np.ndarray:
    """Returns weights for a file: those that are bfloat16 to the bit as the bits of it, uint16."""
    short = weights.astype(jnp.bfloat16)
    exact = weights.ndim > 1 and np.array_equal(short.astype(np.float32), weights)
    return short.view(np.uint16) if exact else weights


def _unpack(stored: jax.Array) -> jax.Array:
    if stored.dtype != jnp.uint16:
        return stored
    return lax.bitcast_convert_type(stored, jnp.bfloat16).astype(jnp.float32)


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
