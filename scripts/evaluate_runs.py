"""Tries the networks of several runs on each other's adversarial examples, and lets them vote.

    python scripts/evaluate_runs.py runs/x runs/y runs/z --output=runs/together

The runs test the same images under the same attacks; a single run gives the transfer matrix of its
own classifiers. The output folder gets:

    transfer.parquet      one row for each source, target, attack and example
    transfer.csv          accuracies: made on (line), tried on (column), worst over the attacks
    predictions.parquet   the votes: one row for each defence, vote, evaluation and example
    results.csv           derived from it, as in a run
    runs.json             which runs
"""

from pathlib import Path

from absl import flags

from medadv_jax import cli
from medadv_jax.config import expand_path
from medadv_jax.errors import UserError
from medadv_jax.experiment.finished_runs import evaluate_runs

_OUTPUT = flags.DEFINE_string("output", "", "Folder for the records; needed.")
_IMAGES = flags.DEFINE_integer(
    "images", 0, "Test images, as many of each class; 0: all of them.", lower_bound=0
)


def main(runs: list[Path]) -> None:
    """Evaluates the runs that are named."""
    if not _OUTPUT.value:
        raise UserError("--output is missing: name the folder for the records")
    evaluate_runs(runs, expand_path(_OUTPUT.value, "--output"), _IMAGES.value)


if __name__ == "__main__":
    cli.run_on_paths(main)
