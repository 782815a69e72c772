"""Converts a torchvision or Keras weights file into a safetensors file of ours, fully checked.

    python scripts/convert_weights.py --arch=resnet50 --input=resnet50-0676ba61.pth \
        --output=resnet50.safetensors --verify

Reads .pth .pt .safetensors .h5 .weights.h5 .keras, with or without a head; the content decides
which. A run takes the result, or the original file itself, as `--config.model.weights=FILE`.
"""

from absl import flags

from medadv_jax import cli
from medadv_jax.config import expand_path
from medadv_jax.errors import UserError
from medadv_jax.models import MODELS
from medadv_jax.models.pretrained.load import match_arrays, save_matched
from medadv_jax.models.pretrained.read import read_weights
from medadv_jax.models.pretrained.verify import verify

_ARCH = flags.DEFINE_string("arch", "", f"The network: {', '.join(sorted(MODELS))}.")
_SOURCE = flags.DEFINE_enum(
    "source", "auto", ["auto", "torchvision", "keras"], "Raise an error for any other layout."
)
_INPUT = flags.DEFINE_string("input", "", "The file to convert.")
_OUTPUT = flags.DEFINE_string("output", "", "The safetensors file to write.")
_CLASSES = flags.DEFINE_list("classes", [], "Names of the logits in their order, comma-separated.")
_VERIFY = flags.DEFINE_bool("verify", False, "Compare the logits with the original library's.")


def main() -> None:
    """Converts one file. On a UserError nothing is written."""
    for name, flag in (("arch", _ARCH), ("input", _INPUT), ("output", _OUTPUT)):
        if not flag.value:
            raise UserError(f"--{name} is missing; see the head of scripts/convert_weights.py")
    source = expand_path(_INPUT.value, "--input")
    target = expand_path(_OUTPUT.value, "--output")
    if source.resolve() == target.resolve():
        raise UserError(f"--output={target}: is the input; give another file")
    raw = read_weights(source)
    if _SOURCE.value not in ("auto", raw.layout):
        raise UserError(f"--source={_SOURCE.value}: {source} is in the layout of {raw.layout}")
    matched = match_arrays(_ARCH.value, raw)
    matched = matched.named(_CLASSES.value) if _CLASSES.value else matched
    checked = f"logits agree to {verify(raw, matched):.1e}; " if _VERIFY.value else ""
    save_matched(target, matched, source)
    count = sum(array.size for array in matched.arrays.values())
    head = f"{matched.num_classes} classes" if matched.num_classes else "no head"
    head += f" ({', '.join(matched.left_out[:4])} … left out)" if matched.left_out else ""
    print(
        f"{target}: {matched.name} of {matched.source}, {head}, {count:,} numbers; {checked}",
        end="",
    )
    print(f"inputs normalised by {matched.normalization}")


if __name__ == "__main__":
    cli.run(main)
