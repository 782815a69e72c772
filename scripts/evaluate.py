"""Attacks the classifiers of a finished run on its test images, and checks the attacks.

    python scripts/evaluate.py --run=runs/x --defense=hybrid --attacks=apgd,autoattack

The same as `medadv_jax.evaluate` on the deployed classifier, its purifier included; for one with a
purifier BPDA is tried too, and the worst counts. Prints what broke how many images, the robust
accuracy with its 95 % interval, and the checks that do not pass.
"""

from pathlib import Path

from absl import flags

from medadv_jax import cli
from medadv_jax.errors import UserError
from medadv_jax.experiment.evaluate_run import evaluate_run

_RUN = flags.DEFINE_string("run", "", "Directory of a finished run; needed.")
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
    """Evaluates one run; a user's error is one line, exit code 2."""
    if not _RUN.value:
        raise UserError("--run is missing: name the directory of a finished run")
    evaluate_run(
        Path(_RUN.value), _DEFENSE.value, _ATTACKS.value, _EPSILON.value, _IMAGES.value,
        Path(_OUTPUT.value) if _OUTPUT.value else None,
    )  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
