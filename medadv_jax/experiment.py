"""A run: the order of its stages. Each leaves files in the workdir, and is not repeated."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax
import optax
import pyarrow as pa
from rich.console import Console

from medadv_jax import evaluate, results, train_step, workdir
from medadv_jax.assembly import assemble, training_classifier
from medadv_jax.checkpoint import Checkpoints
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.config import Config
from medadv_jax.defenses import Defense, get_defense
from medadv_jax.input_pipeline import (
    Dataset,
    count_listed,
    load_dataset,
    make_loader,
    steps_per_epoch,
)
from medadv_jax.progress import StageProgress, default_console
from medadv_jax.splits import Splits, make_splits
from medadv_jax.train import Trainer
from medadv_jax.validation import check_batch, validate
from medadv_jax.writers import MetricsWriter, write_json


def run(config: Config, folder: Path, console: Console | None = None) -> None:
    """Runs every stage that `folder` does not hold yet.

    Args:
      config: a config like that of `configs/default.py`.
      folder: the run directory; made if missing.
      console: where a person reads.

    Raises:
      UserError: an impossible config, unusable data, a workdir of another config, a loss that is
        not finite.
    """
    validate(config)
    check_batch(config, count_listed(config.data), "images there are")
    Run(config, folder, console or default_console()).execute()


class Run:
    """One config in one workdir."""

    def __init__(self, config: Config, folder: Path, console: Console):
        self.config, self.workdir, self.console = config, folder, console
        self.mesh = train_step.make_mesh()
        self.defenses = [get_defense(name) for name in config.defenses.split(",")]
        self.parts = assemble(config)
        purified = any(defense.purified for defense in self.defenses)
        self.predictor = evaluate.Predictor(
            self.parts.purified if purified else self.parts.bare, config.attack.loop
        )

    def execute(self) -> None:
        """Goes through the stages."""
        workdir.claim(self.workdir, self.config)
        for note in (*self.parts.notes, *workdir.take_over(self.workdir, self.config)):
            self._say(f"note: {note}")
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
        """Trains one classifier to the last epoch, unless that is done, or nothing is trained."""
        config, training = self.config, defense.training(self.config)
        with contextlib.closing(self._checkpoints(defense)) as checkpoints:
            first = checkpoints.latest()
            if first >= training.epochs:
                done = "done before" if first else "its parts are trained; nothing to do"
                self._say(f"train {defense.name}: {done}")
                return
            images, batch_size = len(splits.train), config.train.batch_size
            optimizer = self._optimizer(defense, steps_per_epoch(images, batch_size))
            classifier = training_classifier(self._classifier(defense), config)
            step = train_step.make_train_step(
                classifier, optimizer, defense.make_objective(config), config.data.augment
            )
            state, frozen = train_step.create_state(
                classifier, optimizer, self.mesh, jax.random.key(config.seed),
                config.data.image_size, self._start(defense), defense.trained_layers(config),
            )  # fmt: skip
            total, stage = images * training.epochs, f"train {defense.name}"
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
                    frozen=frozen,
                ).fit(state)

    def _validator(
        self, defense: Defense, dataset: Dataset, splits: Splits
    ) -> Callable[[Variables], dict[str, float]]:
        """Returns variables -> accuracy and loss on the validation images."""
        config = self.config
        attacks = evaluate.validation_attacks(config) if defense.chosen_under else []
        deployed = "full" if defense.purified else "bare"
        gradient = "bare" if defense.chosen_under == "bare" else deployed

        def validate(variables: Variables) -> dict[str, float]:
            batches = make_loader(dataset, splits.validation, self._eval_batch(), shuffle_seed=None)
            threat = evaluate.Threat(("",), (evaluate.Source(gradient, variables),))
            predictions = evaluate.predict_all(
                self.predictor, attacks, [threat], evaluate.Target(deployed, variables), batches,
                self.mesh, config.seed,
            )  # fmt: skip
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
        base = self._best_variables(get_defense("base")) if defense.needs else None
        threats = evaluate.threats(defense, variables, base)
        target = evaluate.Target("full" if defense.purified else "bare", variables)
        batches = make_loader(dataset, splits.test, self._eval_batch(), shuffle_seed=None)
        with StageProgress(self.console, f"evaluate {defense.name}", len(splits.test)) as progress:
            predictions = evaluate.predict_all(
                self.predictor, attacks, threats, target, batches, self.mesh, config.seed,
                progress.advance,
            )  # fmt: skip
        examples = [dataset.examples[i] for i in predictions.index]
        new = [
            results.prediction_rows(
                (defense.name, *key), examples,
                predictions.score[:, column], predictions.predicted[:, column],
            )
            for column, key in evaluate.record_keys(threats, attacks, config.attack.epsilon)
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

    def _classifier(self, defense: Defense) -> Classifier:
        return self.parts.purified if defense.purified else self.parts.bare

    def _optimizer(self, defense: Defense, steps: int) -> optax.GradientTransformation:
        """The optimizer of a stage of `steps` steps an epoch."""
        epochs, rate = defense.training(self.config)
        return train_step.make_optimizer(rate, self.config.train.schedule, epochs * steps)

    def _start(self, defense: Defense) -> Variables | None:
        """Returns what a stage starts from; None: fresh weights."""
        network = self.parts.start
        if defense.network_from:
            network = self._best_variables(get_defense(defense.network_from))
        if network is None or not defense.purified:
            return network
        if defense.purifier_from:
            purifier = self._best_variables(get_defense(defense.purifier_from))["purifier"]
        else:
            size, key = self.config.data.image_size, jax.random.key(self.config.seed)
            purifier = jax.jit(self.parts.purified.init_purifier, static_argnums=1)(key, size)
        return {"params": network["params"], "batch_stats": network["batch_stats"],
                "purifier": purifier}  # fmt: skip

    def _best_variables(self, defense: Defense) -> Variables:
        """Returns the variables of a trained classifier's best checkpoint."""
        if not defense.training(self.config).epochs:
            start = self._start(defense)
            assert start is not None, "a defence that trains nothing starts from others"
            return start
        classifier, size = self._classifier(defense), self.config.data.image_size
        trains = defense.trained_layers(self.config)
        # Shapes do not depend on the number of steps.
        optimizer = self._optimizer(defense, 1)
        like = train_step.abstract_state(classifier, optimizer, self.mesh, size, trains)
        frozen: Variables = {}
        if defense.trains == "purifier" or self.config.train.trainable != "all":
            start = self._start(defense)
            if start is None:
                start = classifier.init(jax.random.key(self.config.seed), size)
            _, frozen = train_step.split(start, trains)
        with contextlib.closing(self._checkpoints(defense)) as checkpoints:
            return checkpoints.restore(checkpoints.best()[0], like).variables(frozen)

    def _eval_batch(self) -> int:
        """Returns the evaluation batch, rounded up to a multiple of the devices."""
        devices = jax.device_count()
        return -(-self.config.eval.batch_size // devices) * devices

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


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
