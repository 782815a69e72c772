"""Tries the networks of several runs on each other's adversarial examples, and lets them vote.

    python scripts/evaluate_runs.py runs/x runs/y runs/z --output=runs/together

The runs test the same images under the same attacks; a single run gives the transfer matrix of its
own classifiers. Leaves in the output folder:

    transfer.parquet      one row for each source, target, attack and example
    transfer.csv          accuracies: made on (line), tried on (column), worst over the attacks
    predictions.parquet   the votes: one row for each defence, vote, evaluation and example
    results.csv           derived from it, as in a run
    runs.json             which runs
"""

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from absl import app, flags

from medadv_jax import cli
from medadv_jax.data.loader import Batch, load_dataset, make_loader
from medadv_jax.distributed import put_batch
from medadv_jax.errors import UserError
from medadv_jax.evaluation import ensemble
from medadv_jax.evaluation.ensemble import Member, Trial
from medadv_jax.evaluation.model_under_test import choose_examples
from medadv_jax.evaluation.predictions import derive_results, write_results, write_table
from medadv_jax.evaluation.threat_models import evaluation_attacks
from medadv_jax.files import write_json, write_text
from medadv_jax.progress import StageProgress, default_console

_OUTPUT = flags.DEFINE_string("output", "", "Folder for the records; needed.")
_IMAGES = flags.DEFINE_integer(
    "images", 0, "Test images, drawn with half of each class; 0: all of them.", lower_bound=0
)


def evaluate_runs(runs: Sequence[Path], output: Path, count: int = 0) -> None:
    """Writes the records of runs against each other.

    Args:
      runs: directories of finished runs, at least one.
      output: the folder to write.
      count: test images to take; 0: all.

    Raises:
      UserError: no run, an unfinished one, or runs that cannot be compared.
    """
    if not runs:
        raise UserError("no run: give run directories, as in evaluate_runs.py runs/x runs/y")
    config, test, made = ensemble.load_runs(runs)
    dataset, console = load_dataset(config.data), default_console()
    position = {example.id: i for i, example in enumerate(dataset.examples)}
    lost = [name for name in test if name not in position]
    if lost:
        raise UserError(f"{runs[0]}: test image {lost[0]} is not in the data; check config.data")
    indices = np.array([position[name] for name in test])
    if count:
        indices = indices[choose_examples(dataset.labels[indices], count, config.seed)]
    members, attacks = ensemble.load_members(runs, made), evaluation_attacks(config)

    def batches() -> Iterator[Batch]:
        return make_loader(dataset, indices, made[0].eval_batch(), shuffle_seed=None)

    def put(batch: Any) -> Any:
        return put_batch(made[0].mesh, batch)

    def stage(name: str, rows: Callable[..., pa.Table], whom: list[Member]) -> pa.Table:
        with StageProgress(console, name, len(indices)) as progress:
            trial = Trial(
                attacks, dataset, batches(), put, config.seed, config.attack.loop, progress.advance
            )
            return rows(whom, trial)

    table = stage("transfer", ensemble.transfer_rows, members)
    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "transfer.parquet", table)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(ensemble.transfer_matrix(table))
    write_text(output / "transfer.csv", text.getvalue())
    votes = []
    for defense in dict.fromkeys(member.defense for member in members):
        whom = [member for member in members if member.defense == defense]
        if len(whom) == len(runs) > 1:
            votes.append(stage(f"vote {defense}", ensemble.ensemble_rows, whom))
    if votes:
        table = pa.concat_tables(votes)
        write_table(output / "predictions.parquet", table)
        rows = derive_results(table)
        model = f"committee of {len(runs)}"
        write_results(output / "results.csv", dataset.name, model, rows)
    content = {"runs": [str(run) for run in runs], "images": len(indices)}
    write_json(output / "runs.json", {**content, "device": jax.devices()[0].device_kind})
    console.print(f"{output}", highlight=False, markup=False)


def main(argv: Sequence[str]) -> None:
    """Evaluates the runs that are named; a user's error is one line, exit code 2."""

    def evaluate() -> None:
        if not _OUTPUT.value:
            raise UserError("--output is missing: name the folder for the records")
        evaluate_runs([Path(path) for path in argv[1:]], Path(_OUTPUT.value), _IMAGES.value)

    sys.exit(cli.guard(evaluate))


if __name__ == "__main__":
    app.run(main)
