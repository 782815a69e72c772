"""Predicts the classes of image files by a trained model; a CSV, a line for each file.

    python scripts/predict.py --model=runs/x/models/hybrid IMAGE_OR_FOLDER… --output=predictions.csv
    python scripts/predict.py --model=runs/x --defense=base 'scans/**/*.png' --abstain-below=0.8
    python scripts/predict.py --model=FOLDER images --saliency=overlays
    python scripts/predict.py --model=FOLDER images --attack=pgd --epsilon=0.03 --labels=labels.csv

Columns: file, predicted, a probability for each class, score and flag of each detector, error. A
file that cannot be read is a line with its reason; the exit code is then 1. --attack writes
attacked images as 8-bit PNG, and predicts these once more after rounding.
"""

import sys
from pathlib import Path

from absl import flags

from medadv_jax import cli, load
from medadv_jax.config import expand_path
from medadv_jax.deployment.predict_files import Options, find_files, predict_files
from medadv_jax.distributed import enable_compilation_cache
from medadv_jax.errors import UserError

_MODEL = flags.DEFINE_string("model", "", "A model folder, or a run directory; needed.")
_DEFENSE = flags.DEFINE_string("defense", None, "Which classifier of a run directory.")
_OUTPUT = flags.DEFINE_string("output", "", 'CSV file to write; "": standard output.')
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images at a time.", lower_bound=1)
_ABSTAIN = flags.DEFINE_float(
    "abstain_below", None, "Adds `abstained`: is the largest probability below this?"
)
flags.DEFINE_alias("abstain-below", "abstain_below")
_SALIENCY = flags.DEFINE_string("saliency", "", "Folder for integrated gradients and Grad-CAM.")
_ATTACK = flags.DEFINE_string("attack", "", "Also attacks the images, by this attack (l-infinity).")
_EPSILON = flags.DEFINE_float("epsilon", 0.03, "Its radius, in pixels of [0, 1].")
_ATTACKED = flags.DEFINE_string("attacked", "attacked", "Folder for the attacked images.")
_LABELS = flags.DEFINE_string("labels", "", "CSV (file, label), or a class; else the predicted.")


def main(paths: list[Path]) -> None:
    """Predicts; exit code 1 if a file could not be read."""
    if not _MODEL.value:
        raise UserError("--model is missing: name a model folder, or a run directory")
    saliency = expand_path(_SALIENCY.value, "--saliency") if _SALIENCY.value else None
    options = Options(
        _BATCH.value, _ABSTAIN.value, saliency, _ATTACK.value, _EPSILON.value,
        expand_path(_ATTACKED.value, "--attacked"), _LABELS.value,
    )  # fmt: skip
    options.check()
    files = find_files(paths)
    enable_compilation_cache("~/.cache/medadv_jax/programs")
    model = load(expand_path(_MODEL.value, "--model"), defense=_DEFENSE.value)
    output = expand_path(_OUTPUT.value, "--output") if _OUTPUT.value else None
    sys.exit(1 if predict_files(model, files, options, output) else 0)


if __name__ == "__main__":
    cli.run_on_paths(main)
