"""Models of finished runs, restored and evaluated against each other.

    evaluate_runs([Path("runs/x"), Path("runs/y")], Path("runs/together"))

Runs of other networks, seeds or training are comparable where they test the same images under the
same attacks; others are an error.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from medadv_jax.config import Config, flatten, read_saved_config
from medadv_jax.data.loader import Dataset, load_dataset, make_loader
from medadv_jax.data.splits import changed_images, saved_class_names
from medadv_jax.defenses import get_defense
from medadv_jax.distributed import put_batch, use_own_settings
from medadv_jax.errors import UserError
from medadv_jax.evaluation.class_results import write_class_results
from medadv_jax.evaluation.decision_threshold import as_deployed, read_thresholds
from medadv_jax.evaluation.ensemble import (
    EvaluationSetup,
    TrainedModel,
    ensemble_rows,
    transfer_matrix,
    transfer_rows,
)
from medadv_jax.evaluation.model_under_test import choose_examples
from medadv_jax.evaluation.predictions import (
    derive_results,
    read_table,
    write_csv,
    write_results,
    write_table,
)
from medadv_jax.evaluation.stale_records import read_networks
from medadv_jax.evaluation.threat_models import evaluation_attacks
from medadv_jax.experiment.validate import validate
from medadv_jax.files import read_json, write_json
from medadv_jax.progress import StageProgress, default_console, say
from medadv_jax.training.classifiers import Classifiers

# Fields that comparable runs share, and those among them that change neither images nor attacks.
_SAME = ("data.", "attack.", "eval.attacks", "eval.num_steps", "eval.restarts", "eval.keep_best")
_MAY_DIFFER = ("data.dir", "data.cache_dir", "data.augment.", "attack.loop")


def evaluate_runs(runs: Sequence[Path], output: Path, count: int = 0) -> None:
    """Writes the records of runs against each other; see `scripts/evaluate_runs.py`.

    Args:
      runs: directories of finished runs, at least one.
      output: the folder to write.
      count: test images to take; 0: all.

    Raises:
      UserError: no run, an unfinished one, or runs that cannot be compared.
    """
    if not runs:
        raise UserError("no run: give run directories, as in evaluate_runs.py runs/x runs/y")
    use_own_settings()
    config, test, made = load_runs(runs)
    dataset, console = load_dataset(config.data), default_console()
    indices = find_examples(dataset, test, runs[0])
    for run in runs:
        refuse_changed_images(run, dataset)
    if count:
        indices = indices[choose_examples(dataset.labels[indices], count, config.seed)]
    models, attacks = load_models(runs, made), evaluation_attacks(config)

    def put(batch: Any) -> Any:
        return put_batch(made[0].mesh, batch)

    def stage(name: str, rows: Callable[..., pa.Table], of: list[TrainedModel]) -> pa.Table:
        batches = make_loader(dataset, indices, made[0].eval_batch(), shuffle_seed=None)
        with StageProgress(console, name, len(indices)) as progress:
            setup = EvaluationSetup(
                attacks, dataset, batches, put, config.seed, config.attack.loop, progress.advance
            )
            return rows(of, setup)

    table = stage("transfer", transfer_rows, models)
    write_table(output / "transfer.parquet", table)
    write_csv(output / "transfer.csv", transfer_matrix(table))
    votes = []
    for defense in dict.fromkeys(model.defense for model in models):
        of = [model for model in models if model.defense == defense]
        if len(of) == len(runs) > 1:
            votes.append(stage(f"vote {defense}", ensemble_rows, of))
    if votes:
        table = pa.concat_tables(votes)
        write_table(output / "predictions.parquet", table)
        model = f"committee of {len(runs)}"
        write_results(output / "results.csv", dataset.name, model, derive_results(table))
        write_class_results(output, dataset.class_names, table)
    content = {"runs": [str(run) for run in runs], "images": len(indices)}
    write_json(output / "runs.json", {**content, "device": jax.devices()[0].device_kind})
    say(console, str(output))


def find_examples(dataset: Dataset, ids: Sequence[str], run: Path) -> np.ndarray:
    """Returns the positions of a run's test examples in the data set."""
    position = {example.id: i for i, example in enumerate(dataset.examples)}
    lost = [name for name in ids if name not in position]
    if lost:
        raise UserError(f"{run}: test image {lost[0]} is not in the data; check config.data")
    return np.array([position[name] for name in ids])


def refuse_changed_images(run: Path, dataset: Dataset) -> None:
    """Raises UserError if test images have another content than when the run was made."""
    saved = read_json(run / "splits.json")
    now = {example.id: example.md5 for example in dataset.examples}
    if changed := changed_images(saved, now, ("test",)):
        raise UserError(
            f"{run}: {len(changed)} test images have another content now, as {changed[0]}; bring"
            " the images of the run back"
        )


def load_runs(runs: Sequence[Path]) -> tuple[Config, list[str], list[Classifiers]]:
    """Restores the classifiers of runs.

    Returns:
      The config of the first run, which stands for all in data, attacks and evaluation; the ids of
      their test examples; the classifiers of each run.

    Raises:
      UserError: a directory without a finished run, or runs of other images or attacks.
    """
    configs = [_config(run) for run in runs]
    fields = [flatten(config) for config in configs]
    for run, other in zip(runs, fields, strict=True):
        for name, value in fields[0].items():
            if name.startswith(_SAME) and not name.startswith(_MAY_DIFFER) and other[name] != value:
                raise UserError(
                    f"{run}: config.{name}={other[name]}, and {value} in {runs[0]}; give runs of"
                    " the same images and attacks"
                )
    splits = [read_json(run / "splits.json") for run in runs]
    tests = [saved["test"] for saved in splits]
    for run, test in zip(runs, tests, strict=True):
        if test != tests[0]:
            raise UserError(f"{run}: tests other images than {runs[0]}; give runs of one split")
    made = [
        Classifiers(config, run, saved_class_names(saved, config.data.name))
        for config, run, saved in zip(configs, runs, splits, strict=True)
    ]
    return configs[0], tests[0], made


def load_models(runs: Sequence[Path], made: Sequence[Classifiers]) -> list[TrainedModel]:
    """Returns every classifier of every run; `made` from `load_runs`.

    Raises:
      UserError: a checkpoint is not the one that the records of its run are of, or two runs are
        copies of one.
    """
    refuse_other_checkpoints(runs, made)
    names = [run.resolve().name for run in runs]
    if len({*names}) < len(names):
        names = [str(run) for run in runs]
    models = []
    for run, name, classifiers in zip(runs, names, made, strict=True):
        thresholds = read_thresholds(run)
        for defense in _config(run).defenses.split(","):
            target = as_deployed(classifiers.target(get_defense(defense)), thresholds.get(defense))
            models.append(TrainedModel(name, defense, classifiers.predictor, target))
    return models


def refuse_other_checkpoints(runs: Sequence[Path], made: Sequence[Classifiers]) -> None:
    """Raises UserError for a checkpoint that its run's records are not of, and for copies."""
    copies: dict[str, Path] = {}
    for run, classifiers in zip(runs, made, strict=True):
        known, defenses = read_networks(run), _config(run).defenses.split(",")
        networks = {name: classifiers.sha256(get_defense(name)) for name in defenses}
        for name, network in networks.items():
            if known.get(name, network) != network:
                raise UserError(
                    f"{run}: its records are of another checkpoint of {name} than"
                    f" checkpoints/{name} holds; repeat the command of this run first"
                )
        first = copies.setdefault(str(networks), run)
        if first != run:
            raise UserError(f"{run}: a copy of {first}; give each run once")


def _config(run: Path) -> Config:
    """Returns the config of a finished run; UserError if it is none."""
    for name in ("config.json", "splits.json", "predictions.parquet"):
        if not (run / name).is_file():
            raise UserError(f"{run}: {name} is missing; give the --workdir of a finished run")
    config: Config = ConfigDict(read_saved_config(run / "config.json")["config"])
    validate(config)
    done = read_table(run / "predictions.parquet")["defense"].unique().to_pylist()
    missing = [name for name in config.defenses.split(",") if name not in done]
    if missing:
        raise UserError(f"{run}: {missing[0]} is not evaluated yet; let the run finish first")
    return config
