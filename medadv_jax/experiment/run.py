"""A run: the order of its stages. Each leaves files in the run directory, and is not repeated.

    config ─► data and splits ─► training of each defence ─► attacks on each classifier
           ─► detectors ─► pictures ─► cost of a prediction ─► calibration ─► saliency
           ─► curves and self-checks ─► results ─► model folders ─► report

What a stage needs is built where the stage lives: `data/`, `training/classifiers.py`,
`evaluation/stages.py`, `report/`.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from medadv_jax import distributed, error_messages
from medadv_jax.config import Config
from medadv_jax.data.loader import Dataset, Listing, list_dataset, load_dataset, make_loader
from medadv_jax.data.splits import Splits, make_splits
from medadv_jax.defenses import get_defense
from medadv_jax.deployment.from_run import save_model
from medadv_jax.errors import UserError
from medadv_jax.evaluation.label_results import measure_labels
from medadv_jax.evaluation.model_under_test import with_fewer_tests
from medadv_jax.evaluation.optional_stages import (
    calibrate,
    explain,
    keep_pictures,
    measure_cost,
    save_images,
    with_thresholds,
)
from medadv_jax.evaluation.record_names import LABEL_RESULTS
from medadv_jax.evaluation.stages import Evaluation
from medadv_jax.evaluation.stale_records import remove_stale
from medadv_jax.experiment import run_dir
from medadv_jax.experiment.validate import check_batch, check_classes, validate
from medadv_jax.files import read_metrics, write_json
from medadv_jax.progress import StageProgress, default_console, say
from medadv_jax.training.build import find_start
from medadv_jax.training.classifiers import Classifiers
from medadv_jax.training.cost import training_cost
from medadv_jax.training.metric_writer import MetricsWriter, SilentWriter

_LEFT = (
    ("results.csv", "the table above"),
    ("predictions.parquet", "one row for each prediction"),
    ("metrics.jsonl", "training curves; the same for TensorBoard in tensorboard/"),
    ("splits.json", "who is in which split, and what was left out"),
    ("checkpoints", "the best and the last of each classifier"),
    ("models", "each classifier to load without the run"),
)


def check_name(folder: Path) -> None:
    """Raises UserError for a run directory in which checkpoints would not be found again.

    Orbax takes paths below it for patterns, and some names for places in a cloud.
    """
    path = str(folder.absolute())
    wrong = re.search(r"[][*?\\]|(gs|s3|az|hf):(?=/)", path)
    if wrong or not _is_utf8(path):
        shown = f"{wrong[0]!r}" if wrong else "bytes that are no UTF-8"
        raise UserError(
            f"--workdir={folder}: its path has {shown}, and checkpoints could not be found again;"
            " give a path without it"
        )


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def run(config: Config, folder: Path, console: Console | None = None) -> None:
    """Runs every stage that `folder` does not hold yet.

    Args:
      config: a config like that of `configs/default.py`.
      folder: the run directory; made if missing.
      console: where a person reads.

    Raises:
      UserError: an impossible config, unusable data, a run directory of another config or of
        another process, a loss that is not finite, no room on disk or in memory.
    """
    with error_messages.explained(config, folder):
        distributed.use_own_settings()
        check_name(folder)
        if config.deterministic:
            distributed.make_deterministic()
        validate(config)
        distributed.enable_compilation_cache(config.compile_cache)
        find_start(config)
        listed = list_dataset(config.data)
        check_batch(config, listed.count, "images there are")
        quiet = None if distributed.is_first() else Console(quiet=True)
        Run(config, folder, console or quiet or default_console(), listed).execute()


class Run:
    """One config in one run directory; `listed`: of its images."""

    def __init__(self, config: Config, folder: Path, console: Console, listed: Listing):
        self.config, self.workdir, self.console = config, folder, console
        self.listed = listed
        self.defenses = [get_defense(name) for name in config.defenses.split(",")]
        check_classes(config, listed.class_names, listed.multi_label)
        self.classifiers = Classifiers(config, folder, listed.class_names)

    def execute(self) -> None:
        """Goes through the stages; alone in the run directory but for processes of this run."""
        first = distributed.is_first()
        with run_dir.locked(self.workdir) if first else contextlib.nullcontext():
            if first:
                notes = run_dir.claim(self.workdir, self.config)
                self._say(f"{self.workdir.absolute()}: {run_dir.describe_machine()}")
                self._note(*notes, *self.classifiers.notes)
                self._note(*run_dir.reuse_stages(self.workdir, self.config))
            distributed.wait("claimed")
            self._go_through(first)

    def _go_through(self, first: bool) -> None:
        """The stages in their order; what is finished is not done again."""
        dataset, splits = self._split()
        self._train(dataset, splits)
        if first:
            networks = {each.name: self.classifiers.sha256(each) for each in self.defenses}
            for name in remove_stale(self.workdir, networks):
                self._note(f"{name}: its records are of another checkpoint, and are made anew")
        distributed.wait("trained")
        evaluation = self._evaluation(dataset, splits)
        if dataset.multi_label:
            measure_labels(evaluation)
        else:
            self._attack(evaluation)
        if first:
            self._save_models(dataset, splits)
            self._report(dataset)

    def _attack(self, evaluation: Evaluation) -> None:
        """The stages that attack the classifiers, and what follows from their records."""
        for defense in self.defenses:
            evaluation.attack(defense.name)
        evaluation.measure_detectors()
        keep_pictures(evaluation)
        measure_cost(evaluation)
        calibrate(evaluation)
        explain(evaluation)
        save_images(evaluation)
        evaluation.check()
        if distributed.is_first():
            evaluation.summarize()

    def _split(self) -> tuple[Dataset, Splits]:
        """Loads the data set and splits it; writes `splits.json`."""
        config = self.config
        with (
            distributed.first_before_others("data"),
            StageProgress(self.console, "decode", self.listed.count) as progress,
        ):
            dataset = load_dataset(config.data, progress.advance)
        splits = make_splits(dataset.examples, config.data, config.seed, dataset.strata)
        splits = with_fewer_tests(splits, dataset.labels, config.eval.images, config.seed)
        content = splits.to_json(dataset.examples)
        if dataset.multi_label:
            content["findings"] = dataset.class_names
        if distributed.is_first():
            run_dir.refuse_other_images(self.workdir / "splits.json", content)
            if config.reuse:
                used = Path(config.reuse, "splits.json")
                run_dir.refuse_other_images(used, content, ("train", "validation"))
            write_json(self.workdir / "splits.json", content | {"data": dataset.report})
        check_batch(config, len(splits.train), "training images")
        sizes = f"{len(splits.train)} training, {len(splits.validation)} validation"
        self._say(
            f"{dataset.name}: {sizes}, {len(splits.test)} test images, split by {splits.done}"
        )
        self._note(*dataset.report["notes"], *splits.notes)
        return dataset, splits

    def _train(self, dataset: Dataset, splits: Splits) -> None:
        """Trains what is left to train, and restores all of it; all processes together."""
        writer = MetricsWriter(self.workdir) if distributed.is_first() else SilentWriter()
        with contextlib.closing(writer):
            for defense in self.defenses:
                done = self.classifiers.train(defense, dataset, splits, writer, self.console)
                if done:
                    self._say(f"train {defense.name}: {done}")
        for defense in self.defenses:
            self.classifiers.variables(defense)
        if distributed.is_first():
            lines = read_metrics(self.workdir / "metrics.jsonl")
            cost = training_cost(self.config, lines, len(splits.train))
            write_json(self.workdir / "training_cost.json", cost)

    def _evaluation(self, dataset: Dataset, splits: Splits) -> Evaluation:
        """Returns the stages that follow, with the best checkpoint of each classifier."""
        parts = self.classifiers
        targets = {defense.name: parts.target(defense) for defense in self.defenses}
        evaluation = Evaluation(
            self.config, self.workdir, self.console, dataset, splits, parts.predictor, parts.mesh,
            parts.eval_batch(), targets,
        )  # fmt: skip
        return with_thresholds(evaluation)

    def _save_models(self, dataset: Dataset, splits: Splits) -> None:
        """Writes the model folder of each classifier, if another or none is there."""

        def validation() -> Iterator[np.ndarray]:
            size = self.classifiers.eval_batch()
            for batch in make_loader(dataset, splits.validation, size, shuffle_seed=None):
                yield batch["image"][batch["mask"] > 0]

        with StageProgress(self.console, "models", len(self.defenses), unit="folders") as progress:
            for defense in self.defenses:
                classifier = self.classifiers.classifier(defense)
                variables = self.classifiers.variables(defense)
                if save_model(self.workdir, defense.name, classifier, variables, validation):
                    progress.advance()

    def _report(self, dataset: Dataset) -> None:
        """Writes the report, and says what lies where."""
        if dataset.multi_label:
            self._say(f"{self.workdir / LABEL_RESULTS}: the areas above; there is no page")
            return
        from medadv_jax.report import write_report  # imported late: training needs no matplotlib

        with StageProgress(self.console, "report", 1, unit="page") as progress:
            page = write_report([self.workdir], self.workdir / "report")
            progress.advance()
        self._say(f"{page}: the report, with figures")
        for name, what in _LEFT:
            self._say(f"{self.workdir / name}: {what}")

    def _note(self, *notes: str) -> None:
        for note in notes:
            self._say(f"note: {note}")

    def _say(self, text: str) -> None:
        say(self.console, text)
