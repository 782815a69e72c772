"""Exports a trained model for programs without this package; each file is checked against it.

    python scripts/export.py --run=runs/x --defense=hybrid --output=exported
    python scripts/export.py --model=FOLDER --output=exported --images=scans --format=stablehlo,onnx
    python scripts/export.py --run=runs/x --defense=adversarial --output=small --format=onnx \\
      --quantize=int8

Formats: stablehlo, for JAX on CPU, GPU and TPU, with a reader of 20 lines; onnx, one file for ONNX
runtimes (extra `onnx`). Programs take images (B, S, S, 3) uint8, any B, and return probabilities
and logits; normalisation and purifier are inside. They run on 100 images, of --images or the run's
validation images, else random ones; their logits must be the model's to 1e-4. The card, README.md,
has the result.

Compressed programs must give the model's class to 90 % of the images: --dtype=bfloat16 (stablehlo);
--quantize=int8 (onnx), weights and activations, calibrated on 100 images more.
"""

from pathlib import Path

from absl import flags

from medadv_jax import cli, load
from medadv_jax.config import expand_path
from medadv_jax.deployment.check_images import COUNT, choose_images
from medadv_jax.deployment.export import choose_compression, export_model, refuse_other
from medadv_jax.errors import UserError

_MODEL = flags.DEFINE_string("model", "", "A model folder, or a run directory; needed.")
flags.DEFINE_alias("run", "model")
_DEFENSE = flags.DEFINE_string("defense", None, "Which classifier of a run directory.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder to write; needed.")
_FORMAT = flags.DEFINE_list("format", ["stablehlo"], "Comma-separated; see above.")
_IMAGES = flags.DEFINE_string("images", "", "Folder of images that programs are checked on.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Or bfloat16: of weights and computation.")
_QUANTIZE = flags.DEFINE_string("quantize", "none", "Or int8: of weights and activations.")


def main() -> None:
    """Exports one model, and prints a line for each program."""
    for name, flag in (("model", _MODEL), ("output", _OUTPUT)):
        if not flag.value:
            raise UserError(f"--{name} is missing; see the head of scripts/export.py")
    path = expand_path(_MODEL.value, "--model")
    output = expand_path(_OUTPUT.value, "--output")
    refuse_other(output)
    compression = choose_compression(_DTYPE.value, _QUANTIZE.value)
    model = load(path, defense=_DEFENSE.value)
    folder = expand_path(_IMAGES.value, "--images") if _IMAGES.value else None
    images = choose_images(model, path, folder, 2 * COUNT if compression == "int8" else COUNT)
    for line in export_model(model, output, _FORMAT.value, images, compression):
        print(line)
    print(Path(output, "README.md"))


if __name__ == "__main__":
    cli.run(main)
