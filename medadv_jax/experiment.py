"""A run: the order of its stages. Each leaves files in the workdir, and is not repeated."""

import contextlib
import json
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pyarrow as pa
from rich.console import Console

from medadv_jax import evaluate, results, train_step
from medadv_jax.checkpoint import Checkpoints
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.config import Config
from medadv_jax.defenses import Defense, get_defense
from medadv_jax.errors import UserError
from medadv_jax.input_pipeline import (
    Dataset,
    count_listed,
    load_dataset,
    make_loader,
    steps_per_epoch,
)
from medadv_jax.models import create_model
from medadv_jax.progress import StageProgress, default_console
from medadv_jax.splits import Splits, make_splits
from medadv_jax.train import Trainer
from medadv_jax.validation import check_batch, flatten, validate
from medadv_jax.writers import MetricsWriter, write_json

_PACKAGES = ("medadv_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run(config: Config, workdir: Path, console: Console | None = None) -> None:
    """Runs every stage that `workdir` does not hold yet.

    Args:
      config: a config like that of `configs/default.py`.
      workdir: the run directory; made if missing.
      console: where a person reads.

    Raises:
      UserError: an impossible config, unusable data, a workdir of another config, a loss that is
        not finite.
    """
    validate(config)
    check_batch(config, count_listed(config.data), "images there are")
    Run(config, workdir, console or default_console()).execute()


class Run:
    """One config in one workdir."""

    def __init__(self, config: Config, workdir: Path, console: Console):
        self.config, self.workdir, self.console = config, workdir, console
        self.mesh = train_step.make_mesh()
        network = create_model(
            config.model.name,
            num_classes=2,
            width=config.model.width,
            dtype=jnp.dtype(config.model.dtype),
            forms=config.model.forms,
        )
        self.classifier = Classifier(network, config.model.normalization)
        self.predictor = evaluate.Predictor(self.classifier, config.attack.loop)
        self.defenses = [get_defense(name) for name in config.defenses.split(",")]

    def execute(self) -> None:
        """Goes through the stages."""
        _claim(self.workdir, self.config)
        dataset, splits = self._split()
        with contextlib.closing(MetricsWriter(self.workdir)) as writer:
            for defense in self.defenses:
                self._train(defense, dataset, splits, writer)
        for defense in self.defenses:
            self._evaluate(defense, dataset, splits)
        self._report(splits, dataset)

    def _split(self) -> tuple[Dataset, Splits]:
        """Loads the data set and cuts it; writes `splits.json`."""
        config = self.config
        dataset = load_dataset(config.data)
        splits = make_splits(dataset.examples, config.data, config.seed)
        content = splits.to_json(dataset.examples)
        write_json(self.workdir / "splits.json", content | {"data": dataset.report})
        check_batch(config, len(splits.train), "training images")
        sizes = f"{len(splits.train)} training, {len(splits.validation)} validation"
        self._say(f"{dataset.name}: {sizes}, {len(splits.test)} test images by {config.data.split}")
        for note in (*dataset.report["notes"], *splits.notes):
            self._say(f"note: {note}")
        return dataset, splits

    def _train(
        self, defense: Defense, dataset: Dataset, splits: Splits, writer: MetricsWriter
    ) -> None:
        """Trains one classifier to the last epoch, unless that is done."""
        config = self.config
        with contextlib.closing(self._checkpoints(defense)) as checkpoints:
            first = checkpoints.latest()
            if first >= config.train.epochs:
                self._say(f"train {defense.name}: done before")
                return
            images, batch_size = len(splits.train), config.train.batch_size
            optimizer = train_step.make_optimizer(config, steps_per_epoch(images, batch_size))
            step = train_step.make_train_step(
                self.classifier, optimizer, defense.make_examples_fn(config), config.data.augment
            )
            start = None
            if defense.starts_from:
                start = self._best_variables(get_defense(defense.starts_from))
            state = train_step.create_state(
                self.classifier, optimizer, self.mesh, jax.random.key(config.seed),
                config.data.image_size, start,
            )  # fmt: skip
            total, stage = images * config.train.epochs, f"train {defense.name}"
            with StageProgress(self.console, stage, total, images * first) as progress:
                Trainer(
                    config=config,
                    defense=defense,
                    train_step=step,
                    make_epoch=lambda epoch: make_loader(
                        dataset, splits.train, batch_size, shuffle_seed=config.seed, epoch=epoch
                    ),
                    validate=self._validator(defense, dataset, splits),
                    checkpoints=checkpoints,
                    writer=writer,
                    progress=progress,
                    mesh=self.mesh,
                ).fit(state)

    def _validator(
        self, defense: Defense, dataset: Dataset, splits: Splits
    ) -> Callable[[Variables], dict[str, float]]:
        """Returns variables -> accuracy and loss on the validation images."""
        config = self.config
        attacks = evaluate.validation_attacks(config) if defense.robust_selection else []

        def validate(variables: Variables) -> dict[str, float]:
            batches = make_loader(dataset, splits.validation, self._eval_batch(), shuffle_seed=None)
            predictions = evaluate.predict_all(
                self.predictor, attacks, variables, batches, self.mesh, config.seed
            )
            return evaluate.accuracy_and_loss(predictions)

        return validate

    def _evaluate(self, defense: Defense, dataset: Dataset, splits: Splits) -> None:
        """Attacks one classifier on the test images; adds to `predictions.parquet`."""
        config = self.config
        path = self.workdir / "predictions.parquet"
        table = results.read_predictions(path)
        if defense.name in table["defense"].unique().to_pylist():
            self._say(f"evaluate {defense.name}: done before")
            return
        attacks = evaluate.evaluation_attacks(config)
        variables = self._best_variables(defense)
        batches = make_loader(dataset, splits.test, self._eval_batch(), shuffle_seed=None)
        with StageProgress(self.console, f"evaluate {defense.name}", len(splits.test)) as progress:
            predictions = evaluate.predict_all(
                self.predictor, attacks, variables, batches, self.mesh, config.seed,
                progress.advance,
            )  # fmt: skip
        examples = [dataset.examples[i] for i in predictions.index]
        # Without a purifier the deployed classifier is the whole one: the attack is adaptive.
        keys = [("none", "clean", 0.0)]
        keys += [("adaptive", attack.name, config.attack.epsilon) for attack in attacks]
        new = [
            results.prediction_rows(
                (defense.name, *key), examples,
                predictions.score[:, column], predictions.predicted[:, column],
            )
            for column, key in enumerate(keys)
        ]  # fmt: skip
        results.write_predictions(path, pa.concat_tables([table, *new]))

    def _report(self, splits: Splits, dataset: Dataset) -> None:
        """Derives `results.csv` from the predictions, and says where everything lies."""
        table = results.read_predictions(self.workdir / "predictions.parquet")
        rows = results.derive_results(table)
        model = self.config.model.name
        results.write_results(self.workdir / "results.csv", dataset.name, model, rows)
        results.print_results(self.console, rows)
        for warning in _doubts(splits, dataset):
            self._say(f"warning: {warning}")
        for name, what in (
            ("results.csv", "the table above"),
            ("predictions.parquet", "one row for each prediction"),
            ("metrics.jsonl", "training curves; the same for TensorBoard in tensorboard/"),
            ("splits.json", "who is in which split, and what was left out"),
            ("checkpoints", "the best and the last of each classifier"),
        ):
            self._say(f"{self.workdir / name}: {what}")

    def _checkpoints(self, defense: Defense) -> Checkpoints:
        return Checkpoints(self.workdir / "checkpoints" / defense.name)

    def _best_variables(self, defense: Defense) -> Variables:
        """Returns the variables of a trained classifier's best checkpoint."""
        # Shapes do not depend on the number of steps.
        optimizer, size = train_step.make_optimizer(self.config, 1), self.config.data.image_size
        like = train_step.abstract_state(self.classifier, optimizer, self.mesh, size)
        with contextlib.closing(self._checkpoints(defense)) as checkpoints:
            return checkpoints.restore(checkpoints.best()[0], like).variables

    def _eval_batch(self) -> int:
        """Returns the evaluation batch, rounded up to a multiple of the devices."""
        devices = jax.device_count()
        return -(-self.config.eval.batch_size // devices) * devices

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _claim(workdir: Path, config: Config) -> None:
    """Writes `config.json`, or checks that the workdir belongs to the same config."""
    path = workdir / "config.json"
    if path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"))["config"]
        _refuse_other_config(workdir, flatten(saved), flatten(config))
        return
    device = jax.devices()[0]
    content = {
        "config": config.to_dict(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "device": f"{jax.device_count()} × {device.device_kind} ({device.platform})",
        "git_commit": _git_commit(),
    }
    write_json(path, content)


def _refuse_other_config(workdir: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    fields = {**there, **here}.keys() - {"data.cache_dir"}  # which changes no result
    changed = [name for name in sorted(fields) if there.get(name) != here.get(name)]
    if changed:
        differences = ", ".join(
            f"config.{name}={here.get(name)} (there: {there.get(name)})" for name in changed
        )
        raise UserError(
            f"{workdir} holds a run of another config: {differences}; give another --workdir"
        )


def _git_commit() -> str:
    """Returns the commit of the code, marked where files differ from it; "" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _doubts(splits: Splits, dataset: Dataset) -> list[str]:
    """Returns why the numbers of a run may mean little."""
    test = [dataset.examples[i] for i in splits.test]
    groups = {label: len({e.group for e in test if e.label == label}) for label in (0, 1)}
    doubts = []
    if len(test) < 100:
        doubts.append(f"{len(test)} test images are too few: these accuracies mean nothing")
    if min(groups.values()) < 10:
        doubts.append(
            f"{groups[0]} negative and {groups[1]} positive patients in the test split: the"
            " intervals above take images for independent, and are too narrow"
        )
    return doubts
