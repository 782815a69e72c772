"""Attacks trained classifiers on the test images of their run, or on other images.

    python scripts/evaluate.py --run=runs/x --defense=hybrid --attacks=apgd,autoattack
    python scripts/evaluate.py --model=runs/x --data=FOLDER --attacks=apgd

The same as `medadv_jax.evaluate` on the deployed classifier, its purifier included; for one with a
purifier BPDA is tried too, and the worst counts. Prints what broke how many images, the robust
accuracy with its 95 % interval, and the checks that do not pass. With --data, the test split of
another data set or any folder of images by class, `elsewhere.json` of the run keeps the result.
"""

from pathlib import Path

from absl import flags

from medadv_jax import cli
from medadv_jax.errors import UserError
from medadv_jax.experiment.evaluate_elsewhere import evaluate_elsewhere
from medadv_jax.experiment.evaluate_run import evaluate_run

_RUN = flags.DEFINE_string("run", "", "Directory of a finished run, for its own test images.")
_MODEL = flags.DEFINE_string("model", "", "Run directory or model folder, for other images.")
_DATA = flags.DEFINE_string("data", "", "Folder of other images, by class; with --model.")
_DEFENSE = flags.DEFINE_list("defense", [], "Classifiers, comma-separated; all if not given.")
_ATTACKS = flags.DEFINE_string("attacks", "autoattack", "Attacks, comma-separated.")
_EPSILON = flags.DEFINE_float(
    "epsilon", None, "Radius in pixels of [0, 1]; that of the run if not given.", lower_bound=0.0
)
_IMAGES = flags.DEFINE_integer(
    "images", 0, "Test images, as many of each class; 0: all of them.", lower_bound=0
)
_OUTPUT = flags.DEFINE_string("output", "", "CSV file: a line for each classifier and image.")


def main() -> None:
    """Evaluates the classifiers of one run; a user's error is one line, exit code 2."""
    if not _RUN.value and not _MODEL.value:
        raise UserError("--run is missing: name a finished run; or give --model and --data")
    if bool(_MODEL.value) != bool(_DATA.value) or (_RUN.value and _MODEL.value):
        raise UserError("--model and --data: give both of them, without --run")
    output = Path(_OUTPUT.value) if _OUTPUT.value else None
    options = (_DEFENSE.value, _ATTACKS.value, _EPSILON.value, _IMAGES.value, output)
    if _RUN.value:
        evaluate_run(Path(_RUN.value), *options)
    else:
        evaluate_elsewhere(Path(_MODEL.value), Path(_DATA.value), *options)


if __name__ == "__main__":
    cli.run(main)
