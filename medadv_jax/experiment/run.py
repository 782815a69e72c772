"""A run: the order of its stages. Each leaves files in the workdir, and is not repeated."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
from rich.console import Console

from medadv_jax import distributed, error_messages
from medadv_jax.config import Config
from medadv_jax.data.loader import Batch, Dataset, count_listed, load_dataset, make_loader
from medadv_jax.data.splits import Splits, make_splits
from medadv_jax.defenses import Defense, get_defense
from medadv_jax.distributed import enable_compilation_cache, make_deterministic, put_batch
from medadv_jax.evaluation import detection, example_images
from medadv_jax.evaluation.checks import run_all
from medadv_jax.evaluation.checks.result import headline
from medadv_jax.evaluation.checks.sample_size import sample_size_warnings
from medadv_jax.evaluation.detection import Detection
from medadv_jax.evaluation.model_under_test import (
    ModelUnderTest,
    choose_examples,
    make_attack_queue,
    read_images,
)
from medadv_jax.evaluation.predictions import (
    derive_results,
    prediction_rows,
    print_results,
    read_predictions,
    read_table,
    write_results,
    write_table,
)
from medadv_jax.evaluation.predictor import predict_all
from medadv_jax.evaluation.robustness_curves import curve_rows, read_curves
from medadv_jax.evaluation.threat_models import (
    evaluation_attack,
    evaluation_attacks,
    record_keys,
    threats,
)
from medadv_jax.experiment import run_dir
from medadv_jax.experiment.validate import check_batch, validate
from medadv_jax.files import write_json
from medadv_jax.progress import StageProgress, default_console
from medadv_jax.training.classifiers import Classifiers
from medadv_jax.training.metric_writer import MetricsWriter, SilentWriter


def run(config: Config, folder: Path, console: Console | None = None) -> None:
    """Runs every stage that `folder` does not hold yet.

    Args:
      config: a config like that of `configs/default.py`.
      folder: the run directory; made if missing.
      console: where a person reads.

    Raises:
      UserError: an impossible config, unusable data, a workdir of another config or of another
        process, a loss that is not finite, no room on disk or in memory.
    """
    with error_messages.explained(config, folder):
        if config.deterministic:
            make_deterministic()
        validate(config)
        enable_compilation_cache(config.compile_cache)
        check_batch(config, count_listed(config.data), "images there are")
        quiet = None if distributed.is_first() else Console(quiet=True)
        Run(config, folder, console or quiet or default_console()).execute()


class Run:
    """One config in one workdir."""

    def __init__(self, config: Config, folder: Path, console: Console):
        self.config, self.workdir, self.console = config, folder, console
        self.defenses = [get_defense(name) for name in config.defenses.split(",")]
        self.classifiers = Classifiers(config, folder)

    def execute(self) -> None:
        """Goes through the stages, alone in the workdir but for processes of the same run."""
        if not distributed.is_first():
            distributed.wait("claimed")
            self._train(*self._split())
            return
        with run_dir.locked(self.workdir):
            notes = run_dir.claim(self.workdir, self.config)
            notes += [*self.classifiers.notes, *run_dir.reuse_stages(self.workdir, self.config)]
            for note in notes:
                self._say(f"note: {note}")
            distributed.wait("claimed")
            self._go_through()

    def _go_through(self) -> None:
        """The stages in their order; what is finished is not done again."""
        dataset, splits = self._split()
        self._train(dataset, splits)
        for defense in self.defenses:
            self._evaluate(defense, dataset, splits)
        self._detect(dataset, splits)
        self._take_pictures(dataset, splits)
        self._check(dataset, splits)
        self._report(splits, dataset)

    def _train(self, dataset: Dataset, splits: Splits) -> None:
        """Trains what is left to train, and brings all of it back; all processes together."""
        writer = MetricsWriter(self.workdir) if distributed.is_first() else SilentWriter()
        with contextlib.closing(writer):
            for defense in self.defenses:
                done = self.classifiers.train(defense, dataset, splits, writer, self.console)
                if done:
                    self._say(f"train {defense.name}: {done}")
        for defense in self.defenses:
            self.classifiers.variables(defense)

    def _split(self) -> tuple[Dataset, Splits]:
        """Loads the data set and cuts it; writes `splits.json`."""
        config = self.config
        with distributed.first_before_others("data"):
            dataset = load_dataset(config.data)
        splits = make_splits(dataset.examples, config.data, config.seed)
        splits = _with_fewer_tests(splits, dataset.labels, config.eval.images, config.seed)
        content = splits.to_json(dataset.examples)
        if distributed.is_first():
            run_dir.refuse_other_images(self.workdir / "splits.json", content)
            write_json(self.workdir / "splits.json", content | {"data": dataset.report})
        check_batch(config, len(splits.train), "training images")
        sizes = f"{len(splits.train)} training, {len(splits.validation)} validation"
        self._say(f"{dataset.name}: {sizes}, {len(splits.test)} test images by {config.data.split}")
        for note in (*dataset.report["notes"], *splits.notes):
            self._say(f"note: {note}")
        return dataset, splits

    def _evaluate(self, defense: Defense, dataset: Dataset, splits: Splits) -> None:
        """Attacks one classifier on the test images; adds to `predictions.parquet`."""
        config, path = self.config, self.workdir / "predictions.parquet"
        table = read_predictions(path)
        if defense.name in table["defense"].unique().to_pylist():
            self._say(f"evaluate {defense.name}: done before")
            return
        attacks = evaluation_attacks(config)
        self._say(f"evaluate {defense.name}: on {len(splits.test)} test images")
        target = self.classifiers.target(defense)
        base = self.classifiers.variables(get_defense("base")) if defense.needs else None
        known = threats(defense, target.variables, base)
        with StageProgress(self.console, f"evaluate {defense.name}", len(splits.test)) as progress:
            predictions = predict_all(
                self.classifiers.predictor, attacks, known, target,
                self._batches(dataset, splits.test), self.classifiers.mesh, config.seed,
                progress.advance,
            )  # fmt: skip
        examples = [dataset.examples[i] for i in predictions.index]
        new = [
            prediction_rows(
                (defense.name, *key), examples,
                predictions.score[:, column], predictions.predicted[:, column],
            )
            for column, key in record_keys(known, attacks, config.attack.epsilon)
        ]  # fmt: skip
        write_table(path, pa.concat_tables([table, *new]))

    def _detect(self, dataset: Dataset, splits: Splits) -> None:
        """Measures the detectors beside the undefended network, if there is a purifier for them."""
        path, settings = self.workdir / "detection.parquet", self.config.detector
        purified = get_defense("autoencoder")
        if not settings.run or purified not in self.defenses or path.exists():
            return
        detection = Detection(
            self.classifiers.predictor, self.classifiers.variables(purified),
            self.classifiers.mesh, self.config.seed,
        )  # fmt: skip
        self._say("detectors: three, each attacked in turn")
        table = detection.measure(
            self._batches(dataset, splits.validation),
            list(self._batches(dataset, splits.test)),
            dataset.examples,
            evaluation_attacks(self.config),
            evaluation_attack(self.config, settings.attack),
            settings.false_positive_rate,
            settings.penalty,
        )
        write_table(path, table)

    def _take_pictures(self, dataset: Dataset, splits: Splits) -> None:
        """Keeps a few attacked images, under PGD or what stands last in `eval.attacks`."""
        path, config = self.workdir / "pictures.npz", self.config
        if path.exists():
            return
        self._say("pictures: a few test images under attack")
        attacks = evaluation_attacks(config)
        names = [attack.name for attack in attacks]
        chosen = example_images.choose(dataset.examples, splits.test)
        batch = next(iter(self._batches(dataset, chosen)))
        arrays = example_images.take(
            self.classifiers.predictor, attacks, "pgd" if "pgd" in names else names[-1],
            {defense.name: self.classifiers.target(defense) for defense in self.defenses},
            put_batch(self.classifiers.mesh, batch), jax.random.key(config.seed),
        )  # fmt: skip
        ids = [dataset.examples[i].id for i in batch["index"][batch["mask"] > 0]]
        example_images.write(path, {**arrays, "example": np.array(ids)})

    def _check(self, dataset: Dataset, splits: Splits) -> None:
        """Draws the curves and asks whether the numbers can be trusted: `self_checks.json`."""
        config, path = self.config, self.workdir / "self_checks.json"
        if not config.eval.checks or path.exists():
            return
        parts, predictor = self.classifiers, self.classifiers.predictor
        test = np.array(splits.test)
        chosen = test[choose_examples(dataset.labels[test], config.eval.check_images, config.seed)]
        images, examples = read_images(dataset, chosen), tuple(dataset.examples[i] for i in chosen)
        sweep = make_attack_queue(predictor, config.attack.norm, parts.eval_batch(), parts.mesh)
        predictions = read_predictions(self.workdir / "predictions.parquet")
        curves, checks = read_curves(self.workdir / "curves.parquet"), []
        for defense in self.defenses:
            self._say(f"check {defense.name}: on {len(chosen)} test images")
            target = parts.target(defense)
            sources = threats(defense, target.variables, None)[-1].sources
            subject = ModelUnderTest(
                defense.name, predictor, sweep, target, sources, images,
                dataset.labels[chosen], examples, config.seed,
            )  # fmt: skip
            if defense.name not in curves["defense"].unique().to_pylist():
                curves = pa.concat_tables([curves, curve_rows(subject, config)])
                write_table(self.workdir / "curves.parquet", curves)
            checks += run_all.run_self_checks(subject, config, curves, predictions)
        checks.append(self._check_splits(dataset, splits, predictions))
        run_all.write_self_checks(path, checks)

    def _check_splits(
        self, dataset: Dataset, splits: Splits, predictions: pa.Table
    ) -> run_all.Check:
        """The check of who is in which split, by names, copies and looks."""
        used = [*splits.train, *splits.validation, *splits.test]
        hashes = run_all.difference_hashes([dataset.source[i] for i in used])
        training = (self.workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return run_all.check_splits(
            splits.to_json(dataset.examples),
            dataset.examples,
            predictions,
            [json.loads(line) for line in training],
            {dataset.examples[i].id: row for i, row in zip(used, hashes, strict=True)},
        )

    def _batches(self, dataset: Dataset, indices: Sequence[int]) -> Iterator[Batch]:
        return make_loader(dataset, indices, self.classifiers.eval_batch(), shuffle_seed=None)

    def _report(self, splits: Splits, dataset: Dataset) -> None:
        """Derives `results.csv` from the predictions, and says where everything lies."""
        table = read_predictions(self.workdir / "predictions.parquet")
        rows = derive_results(table)
        model = self.config.model.name
        write_results(self.workdir / "results.csv", dataset.name, model, rows)
        print_results(self.console, table, rows)
        scores = self.workdir / "detection.parquet"
        if scores.exists():
            rate = self.config.detector.false_positive_rate
            found = detection.summarize(read_table(scores, detection.SCHEMA), rate)
            detection.write_summary(self.workdir / "detection.csv", found)
        for warning in _doubts(splits, dataset):
            self._say(f"warning: {warning}")
        for line in self._verdict():
            self._say(line)
        from medadv_jax.report import write_report  # here: matplotlib, before no step of training

        page = write_report([self.workdir], self.workdir / "report")
        self._say(f"{page}: the report, with figures")
        for name, what in (
            ("results.csv", "the table above"),
            ("predictions.parquet", "one row for each prediction"),
            ("metrics.jsonl", "training curves; the same for TensorBoard in tensorboard/"),
            ("splits.json", "who is in which split, and what was left out"),
            ("checkpoints", "the best and the last of each classifier"),
        ):
            self._say(f"{self.workdir / name}: {what}")

    def _verdict(self) -> list[str]:
        """Returns what the self-checks say, one line each that is not a pass."""
        path = self.workdir / "self_checks.json"
        if not path.exists():
            return ["self-checks: not run (eval.checks=False)"]
        checks = run_all.read_self_checks(path)
        passed = sum(check.verdict == "pass" for check in checks)
        verdict = f"{headline(checks)}; {passed} of {len(checks)} pass"
        lines = [f"self-checks of the measurement: {verdict}"]
        lines += [
            f"{c.verdict}: {c.number} {c.name}, {c.defense or 'run'}: {c.explanation}"
            for c in checks
            if c.verdict != "pass"
        ]
        return lines

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _with_fewer_tests(splits: Splits, labels: np.ndarray, count: int, seed: int) -> Splits:
    """Returns the splits with `count` test images, half of each class; 0: with all of them."""
    total = len(splits.test)
    if not 0 < count < total:
        return splits
    test = np.array(splits.test)
    chosen = test[choose_examples(labels[test], count, seed)].tolist()
    note = f"config.eval.images={count}: {count} of {total} test images are evaluated"
    return dataclasses.replace(splits, test=chosen, notes=[*splits.notes, note])


def _doubts(splits: Splits, dataset: Dataset) -> list[str]:
    """Returns why the numbers of a run may mean little."""
    test = [dataset.examples[i] for i in splits.test]
    warnings = sample_size_warnings([e.label for e in test], [e.group for e in test])
    return [f"{warning}: these accuracies mean nothing" for warning in warnings]
