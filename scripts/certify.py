"""Certifies the smoothed classifiers of a finished run on its test images.

    python scripts/certify.py --run=runs/x
    python scripts/certify.py --run=runs/x --defense=smoothed --images=100 --draws=1000

A certificate promises that no 8-bit image within its L2 radius changes the class that the smoothed
classifier names, except with probability --alpha. The run was trained with smoothed, denoised or
denoised_adversarial among --config.defenses, at --config.defense.sigma. A killed command goes on
where it was.
"""

from pathlib import Path

from absl import flags

from medadv_jax import cli
from medadv_jax.errors import UserError
from medadv_jax.evaluation.certificates import Settings, SmoothedAttack
from medadv_jax.experiment.certify_run import certify_run

_RUN = flags.DEFINE_string("run", "", "Directory of a finished run; needed.")
_DEFENSE = flags.DEFINE_list("defense", [], "Classifiers, comma-separated; the smoothed if none.")
_IMAGES = flags.DEFINE_integer(
    "images", 300, "Test images, as many of each class; 0: all of them.", lower_bound=0
)
_SELECTION = flags.DEFINE_integer("selection", 100, "Draws that choose the class.", lower_bound=1)
_DRAWS = flags.DEFINE_integer("draws", 10_000, "Draws that bound its probability.", lower_bound=1)
_ALPHA = flags.DEFINE_float(
    "alpha", 0.001, "Probability that a promise is wrong.", lower_bound=1e-9, upper_bound=0.5
)
_RADIUS = flags.DEFINE_float(
    "attack_radius", 0.5, "L2 radius of the attack that tries the promises.", lower_bound=1e-6
)
_ATTACKED = flags.DEFINE_integer("attacked", 32, "Images that it attacks.", lower_bound=0)


def main() -> None:
    """Certifies one run; a user's error is one line, exit code 2."""
    if not _RUN.value:
        raise UserError("--run is missing: name the directory of a finished run")
    certify_run(
        Path(_RUN.value), _DEFENSE.value, Settings(_SELECTION.value, _DRAWS.value, _ALPHA.value),
        SmoothedAttack(_RADIUS.value), _IMAGES.value, _ATTACKED.value,
    )  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
