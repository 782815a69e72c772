"""The stages of a run that evaluate its trained classifiers: each leaves a file in the workdir.

A stage whose file is there is not repeated. What reads these files runs no model. Of several
processes each evaluates its share of the images, all gather the results, and the first writes; all
begin a stage together, so that they find the same files.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jax.sharding import Mesh
from rich.console import Console

from medadv_jax.attacks import Attack
from medadv_jax.attacks.autoattack import AutoAttack
from medadv_jax.attacks.continuous_batching import AttackQueue
from medadv_jax.attacks.stepwise import StepwiseAttack
from medadv_jax.attacks.universal import Universal
from medadv_jax.config import Config
from medadv_jax.data.loader import Batch, Dataset, make_loader
from medadv_jax.data.splits import Splits
from medadv_jax.defenses import get_defense
from medadv_jax.distributed import Share, is_first, wait
from medadv_jax.evaluation import detection
from medadv_jax.evaluation.checks import run_all, second_opinion
from medadv_jax.evaluation.checks.sample_size import sample_size_warnings
from medadv_jax.evaluation.class_results import write_class_results
from medadv_jax.evaluation.model_under_test import (
    ModelUnderTest,
    choose_examples,
    make_attack_programs,
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
from medadv_jax.evaluation.predictor import Predictions, Predictor, predict_all, scores
from medadv_jax.evaluation.robustness_curves import (
    curve_attacks,
    curve_rows,
    read_curves,
    searched_radii,
)
from medadv_jax.evaluation.searching import (
    SearchingAttacks,
    read_attack_record,
    write_attack_record,
)
from medadv_jax.evaluation.threat_models import (
    Target,
    evaluation_attack,
    evaluation_attacks,
    record_keys,
    searching_attacks,
    threats,
    universal_attack,
)
from medadv_jax.evaluation.universal_perturbation import (
    PERTURBATIONS,
    add_perturbation,
    fit_worst,
)
from medadv_jax.files import read_metrics
from medadv_jax.progress import StageProgress, say


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The trained classifiers of a run, and the images that they are evaluated on.

    Attributes:
      config: of the run.
      workdir: the run directory.
      console: where a person reads.
      dataset: the data set.
      splits: positions of the validation and test images in it.
      predictor: the compiled programs of all classifiers.
      mesh: the devices of this process.
      batch_size: images at a time, a multiple of the devices.
      targets: name of a defence -> its classifier as deployed, in the order of the config.
    """

    config: Config
    workdir: Path
    console: Console
    dataset: Dataset
    splits: Splits
    predictor: Predictor
    mesh: Mesh
    batch_size: int
    targets: Mapping[str, Target]

    def attack(self, name: str) -> None:
        """Attacks the classifier of a defence on the test images; adds to `predictions.parquet`.

        What the searching attacks did is in `attack_record.json`.
        """
        config, test, stage = self.config, self.splits.test, f"evaluate {name}"
        wait(stage)
        table = self._predictions()
        if name in table["defense"].unique().to_pylist():
            self._say(f"{stage}: done before")
            return
        self._say(f"{stage}: on {len(test)} test images")
        defense, target, attacks = get_defense(name), self.targets[name], evaluation_attacks(config)
        base = self.targets["base"].variables if defense.needs else None
        known = threats(defense, target.variables, base)
        share = self.share(test)
        with self.progress(stage, len(share.mine)) as progress:
            predictions = predict_all(
                self.predictor, attacks, known, target, self.batches(test, share), self.mesh,
                config.seed, progress.advance, share,
            )  # fmt: skip
        examples = [self.dataset.examples[i] for i in predictions.index]
        new = [
            prediction_rows(
                (name, *key), examples,
                predictions.score[:, column], predictions.predicted[:, column],
            )
            for column, key in record_keys(known, attacks, config.attack.epsilon)
        ]  # fmt: skip
        searching, universal = searching_attacks(config), universal_attack(config, self.batch_size)
        if searching or universal:
            model = self.model_under_test(name, np.array(test))
            new += [self._search(model, attack) for attack in searching]
            new += [self._perturb(model, universal)] if universal else []
        self.write("predictions.parquet", pa.concat_tables([table, *new]))

    def _search(self, model: ModelUnderTest, attack: AutoAttack | StepwiseAttack) -> pa.Table:
        """Returns the records of one attack; adds to `attack_record.json`."""
        with self.progress(f"{attack.name} {model.defense}", len(model)) as progress:
            found = model.search(attack, advance=progress.advance)
        if is_first():
            record = self.workdir / "attack_record.json"
            write_attack_record(record, model.defense, model.examples, model.images, attack, found)
        return _adaptive_rows(model, attack, found.pixels)

    def _perturb(self, model: ModelUnderTest, attack: Universal) -> pa.Table:
        """Returns the records of one change for all images; adds it to `universal.npz`."""
        train, settings = np.array(self.splits.train), self.config.eval
        count = settings.universal_images or len(train)
        chosen = train[choose_examples(self.dataset.labels[train], count, self.config.seed)]
        images, labels = read_images(self.dataset, chosen), self.dataset.labels[chosen]
        total = len(chosen) * attack.epochs * len(model.sources)
        with self.progress(f"{attack.name} {model.defense}", total) as progress:
            delta = fit_worst(model, attack, images, labels, progress.advance)
        if is_first():
            add_perturbation(self.workdir / PERTURBATIONS, model.defense, delta)
        return _adaptive_rows(model, attack, np.asarray(attack.apply(model.images, delta)))

    def measure_detectors(self) -> None:
        """Measures the detectors beside the undefended network: `detection.parquet`.

        They need the purifier of `autoencoder`: without it nothing is measured.
        """
        path, settings = self.workdir / "detection.parquet", self.config.detector
        wait("detectors")
        if not settings.run or "autoencoder" not in self.targets or path.exists():
            return
        self._say("detectors: three, each attacked in turn")
        attacks, validation = self._first_order_attacks(), self.splits.validation
        test = self.choose_tests(settings.images or len(self.splits.test)).tolist()
        shares = self.share(validation), self.share(test)
        own = [len(share.mine) for share in shares]
        total = detection.count_scored(own[0], own[1], len(attacks))
        variables = self._base_behind_purifier()
        measured = detection.Detection(self.predictor, variables, self.mesh, self.config.seed)
        with self.progress("detectors", total) as progress:
            table = measured.measure(
                self.batches(validation, shares[0]),
                list(self.batches(test, shares[1])),
                self.dataset.examples,
                attacks,
                evaluation_attack(self.config, settings.attack),
                settings.false_positive_rate,
                settings.penalty,
                progress.advance,
                shares,
            )
        self.write(path.name, table)

    def _base_behind_purifier(self) -> Any:
        """Returns the variables of the base network, its decision and the `autoencoder`'s purifier.

        Of the two only the decision can differ.
        """
        base, both = (self.targets[name].variables for name in ("base", "autoencoder"))
        return {**both, **{name: base[name] for name in ("logit_bias",) if name in base}}

    def check(self) -> None:
        """Draws the curves and runs the self-checks: `curves.parquet`, `self_checks.json`."""
        path = self.workdir / "self_checks.json"
        wait("checks")
        if not self.config.eval.checks or path.exists():
            return
        predictions = self._predictions()
        checks: list[run_all.Check] = []
        for name, model in self._models_under_test():
            self._say(f"check {name}: on {len(model)} test images")
            curves = self._draw_curves(model)
            second = self._second_opinion(name, predictions)
            record = read_attack_record(self.workdir / "attack_record.json").get(name, {})
            with self.progress(f"check {name}", run_all.PARTS, "parts") as progress:
                checks += run_all.run_self_checks(
                    model, self.config, curves, predictions, second, record, progress.advance
                )
        if not is_first():
            return
        checks += run_all.overfitting_checks(
            read_metrics(self.workdir / "metrics.jsonl"), len(self.splits.validation)
        )
        run_all.write_self_checks(path, [*checks, self._check_splits(predictions)])

    def _models_under_test(self) -> Iterator[tuple[str, ModelUnderTest]]:
        """Yields each defence's classifier with the images of `eval.check_images`."""
        chosen = self.choose_tests(self.config.eval.check_images)
        for name in self.targets:
            yield name, self.model_under_test(name, chosen)

    def _second_opinion(self, name: str, predictions: pa.Table) -> second_opinion.SecondOpinion:
        """Attacks what the evaluation left correct by other algorithms."""
        model = self.model_under_test(name, self.choose_tests(self.config.eval.second_images))
        attacks = second_opinion.other_attacks(self.config)
        total = len(model) * len(attacks)
        with self.progress(f"second opinion {name}", total, "images") as progress:
            return second_opinion.ask(model, attacks, predictions, progress.advance)

    def choose_tests(self, count: int) -> np.ndarray:
        """Returns positions of at most `count` test images, as many of each class."""
        test = np.array(self.splits.test)
        return test[choose_examples(self.dataset.labels[test], count, self.config.seed)]

    def model_under_test(self, name: str, chosen: np.ndarray) -> ModelUnderTest:
        """Returns a defence's classifier with the images at these positions of the data set."""
        target, (queue, searching) = self.targets[name], self._attack_programs
        return ModelUnderTest(
            name, self.predictor, queue, searching, target,
            threats(get_defense(name), target.variables, None)[-1].sources,
            read_images(self.dataset, chosen), self.dataset.labels[chosen],
            tuple(self.dataset.examples[i] for i in chosen), self.config.seed,
        )  # fmt: skip

    @functools.cached_property
    def _attack_programs(self) -> tuple[AttackQueue, SearchingAttacks]:
        norm = self.config.attack.norm
        return make_attack_programs(
            self.predictor, norm, self.batch_size, self.mesh, self.num_classes
        )

    def _draw_curves(self, model: ModelUnderTest) -> pa.Table:
        """Returns the rows of `curves.parquet`, those of this classifier added if they lack."""
        path, name = self.workdir / "curves.parquet", model.defense
        curves = read_curves(path, self.num_classes)
        if name in curves["defense"].unique().to_pylist():
            return curves
        starts = sum(attack.num_restarts for attack in curve_attacks(self.config))
        total = starts * len(model) * len(model.sources)
        total += len(searched_radii(self.config)) * len(model)
        with self.progress(f"curves {name}", total, "attacked images") as progress:
            rows = curve_rows(model, self.config, progress.advance)
        curves = pa.concat_tables([curves, rows])
        self.write(path.name, curves)
        return curves

    def _check_splits(self, predictions: pa.Table) -> run_all.Check:
        """Returns the check of what is in which split, by names, copies and looks."""
        splits, dataset = self.splits, self.dataset
        used = [*splits.train, *splits.validation, *splits.test]
        with self.progress("splits", len(used)) as progress:
            hashes = run_all.difference_hashes(
                _counted((dataset.source[i] for i in used), progress)
            )
        return run_all.check_splits(
            splits.to_json(dataset.examples),
            dataset.examples,
            predictions,
            read_metrics(self.workdir / "metrics.jsonl"),
            {dataset.examples[i].id: row for i, row in zip(used, hashes, strict=True)},
        )

    def summarize(self) -> None:
        """Derives `results.csv` and `detection.csv`, and says what they and the checks show."""
        table = self._predictions()
        rows = derive_results(table)
        model = self.config.model.name
        write_results(self.workdir / "results.csv", self.dataset.name, model, rows)
        write_class_results(self.workdir, self.dataset.class_names, table)
        print_results(self.console, table, rows)
        scores = self.workdir / "detection.parquet"
        if scores.exists():
            rate = self.config.detector.false_positive_rate
            found = detection.summarize(read_table(scores, detection.SCHEMA), rate)
            detection.write_summary(self.workdir / "detection.csv", found)
        test = [self.dataset.examples[i] for i in self.splits.test]
        for warning in sample_size_warnings(
            [e.label for e in test], [e.group for e in test], self.dataset.class_names
        ):
            self._say(f"warning: {warning}: these accuracies mean nothing")
        for line in run_all.verdict_lines(self.workdir / "self_checks.json"):
            self._say(line)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.dataset.class_names)

    def _predictions(self) -> pa.Table:
        """Returns the records so far."""
        return read_predictions(self.workdir / "predictions.parquet", self.num_classes)

    def attacks_to_show(self) -> tuple[list[Attack], Attack]:
        """Returns the first-order attacks of the evaluation, and of these PGD, else the last."""
        attacks = self._first_order_attacks()
        pgd = evaluation_attack(self.config, "pgd").name.replace("_targeted", "")
        return attacks, next((each for each in attacks if each.name == pgd), attacks[-1])

    def _first_order_attacks(self) -> list[Attack]:
        return evaluation_attacks(self.config) or [evaluation_attack(self.config, "pgd")]

    def predict_clean(
        self,
        name: str,
        indices: Sequence[int],
        advance: Callable[[int], None] = lambda images: None,
    ) -> Predictions:
        """Returns what a defence's classifier says of clean images, of all processes.

        `advance` is told the number of images that this process is done with.
        """
        share = self.share(indices)
        return predict_all(
            self.predictor, [], [], self.targets[name], self.batches(indices, share), self.mesh,
            self.config.seed, advance, share,
        )  # fmt: skip

    def share(self, indices: Sequence[int]) -> Share:
        """Returns which of these positions this process evaluates: whole batches."""
        return Share(len(indices), self.batch_size)

    def batches(self, indices: Sequence[int], share: Share | None = None) -> Iterator[Batch]:
        """Yields the images at these positions of the data set, in batches of one shape; of a share
        only those."""
        mine = np.asarray(indices)[share.mine] if share else indices
        return make_loader(self.dataset, mine, self.batch_size, shuffle_seed=None)

    def write(self, name: str, table: pa.Table) -> None:
        """Writes a table of the run directory, in the first process."""
        if is_first():
            write_table(self.workdir / name, table)

    def progress(self, stage: str, total: int, unit: str = "images") -> StageProgress:
        """Returns what shows the progress of a stage."""
        return StageProgress(self.console, stage, total, unit=unit)

    def _say(self, text: str) -> None:
        say(self.console, text)


def _adaptive_rows(model: ModelUnderTest, attack: Any, pixels: np.ndarray) -> pa.Table:
    """Returns the records of attacked images (n, H, W, 3)."""
    logits = model.logits(pixels)
    return prediction_rows(
        (model.defense, "adaptive", attack.name, float(attack.epsilon)),
        model.examples, scores(logits), logits.argmax(axis=1),
    )  # fmt: skip


def _counted(images: Iterable[np.ndarray], progress: StageProgress) -> Iterator[np.ndarray]:
    for image in images:
        yield image
        progress.advance()
