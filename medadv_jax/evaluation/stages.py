"""The stages of a run that evaluate its trained classifiers: each leaves a file in the workdir.

A stage whose file is there is not repeated. What reads these files runs no model. Of several
processes each evaluates its share of the images, all gather the results, and the first writes; all
begin a stage together, so that they find the same files.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh
from rich.console import Console

from medadv_jax.attacks import Attack
from medadv_jax.attacks.autoattack import AutoAttack
from medadv_jax.attacks.continuous_batching import AttackQueue
from medadv_jax.attacks.stepwise import StepwiseAttack
from medadv_jax.config import Config
from medadv_jax.data.loader import Batch, Dataset, make_loader
from medadv_jax.data.splits import Splits
from medadv_jax.defenses import get_defense
from medadv_jax.distributed import Share, is_first, put_batch, wait
from medadv_jax.evaluation import detection, example_images
from medadv_jax.evaluation.checks import run_all, second_opinion
from medadv_jax.evaluation.checks.result import headline
from medadv_jax.evaluation.checks.sample_size import sample_size_warnings
from medadv_jax.evaluation.class_results import write_class_results
from medadv_jax.evaluation.decision_threshold import (
    as_deployed,
    choose_threshold,
    read_thresholds,
    write_thresholds,
)
from medadv_jax.evaluation.inference_cost import write_inference_cost
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
from medadv_jax.evaluation.predictor import Predictor, predict_all, scores
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

    def with_thresholds(self) -> "Evaluation":
        """Returns the evaluation of classifiers that decide as `config.eval.threshold` says.

        What is chosen on the clean validation images is in `thresholds.json`.
        """
        if self.config.eval.threshold == "argmax":
            return self
        wait("thresholds")
        found, validation = read_thresholds(self.workdir), self.splits.validation
        for name in [name for name in self.targets if name not in found]:
            share = self._share(validation)
            clean = predict_all(
                self.predictor, [], [], self.targets[name], self._batches(validation, share),
                self.mesh, self.config.seed, share=share,
            )  # fmt: skip
            found[name] = choose_threshold(clean.logits[:, 0], clean.label)
        if is_first():
            write_thresholds(self.workdir, found)
        for name in self.targets:
            self._say(f"threshold {name}: {found[name].probability:.3f} for class 1")
        targets = {name: as_deployed(each, found[name]) for name, each in self.targets.items()}
        return dataclasses.replace(self, targets=targets)

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
        share = self._share(test)
        with self._progress(stage, len(share.mine)) as progress:
            predictions = predict_all(
                self.predictor, attacks, known, target, self._batches(test, share), self.mesh,
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
        searching = searching_attacks(config)
        if searching:
            model = self._model_under_test(name, np.array(test))
            new += [self._search(model, attack) for attack in searching]
        self._write("predictions.parquet", pa.concat_tables([table, *new]))

    def _search(self, model: ModelUnderTest, attack: AutoAttack | StepwiseAttack) -> pa.Table:
        """Returns the records of one attack; adds to `attack_record.json`."""
        with self._progress(f"{attack.name} {model.defense}", len(model)) as progress:
            found = model.search(attack, advance=progress.advance)
        logits = model.logits(found.pixels)
        if is_first():
            record = self.workdir / "attack_record.json"
            write_attack_record(record, model.defense, model.examples, model.images, attack, found)
        return prediction_rows(
            (model.defense, "adaptive", attack.name, float(attack.epsilon)),
            model.examples, scores(logits), logits.argmax(axis=1),
        )  # fmt: skip

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
        test = self._choose_tests(settings.images or len(self.splits.test)).tolist()
        shares = self._share(validation), self._share(test)
        own = [len(share.mine) for share in shares]
        total = detection.count_scored(own[0], own[1], len(attacks))
        variables = self._base_behind_purifier()
        measured = detection.Detection(self.predictor, variables, self.mesh, self.config.seed)
        with self._progress("detectors", total) as progress:
            table = measured.measure(
                self._batches(validation, shares[0]),
                self._batches(test, shares[1]),
                self.dataset.examples,
                attacks,
                evaluation_attack(self.config, settings.attack),
                settings.false_positive_rate,
                settings.penalty,
                progress.advance,
                shares,
            )
        self._write(path.name, table)

    def _base_behind_purifier(self) -> Any:
        """Returns the variables of the base network, its decision and the `autoencoder`'s purifier.

        Of the two only the decision can differ.
        """
        base, both = (self.targets[name].variables for name in ("base", "autoencoder"))
        return {**both, **{name: base[name] for name in ("logit_bias",) if name in base}}

    def keep_pictures(self) -> None:
        """Keeps a few attacked test images, under PGD or the last of `eval.attacks`."""
        path = self.workdir / "pictures.npz"
        if path.exists() or not is_first():
            return
        self._say("pictures: a few test images under attack")
        attacks = self._first_order_attacks()
        names = [attack.name for attack in attacks]
        examples = self.dataset.examples
        batch = next(
            self._batches(
                example_images.choose(
                    examples, self.splits.test, self._num_classes, self.batch_size
                )
            )
        )
        with self._progress("pictures", len(self.targets), "classifiers") as progress:
            arrays = example_images.take(
                self.predictor, attacks, "pgd" if "pgd" in names else names[-1], self.targets,
                put_batch(self.mesh, batch), jax.random.key(self.config.seed), progress.advance,
            )  # fmt: skip
        ids = [examples[i].id for i in batch["index"][batch["mask"] > 0]]
        example_images.write(path, {**arrays, "example": np.array(ids)})

    def measure_cost(self) -> None:
        """Counts and times the prediction of one image: `inference_cost.json`."""
        path, size = self.workdir / "inference_cost.json", self.config.data.image_size
        if path.exists() or not is_first():
            return
        programs = len({target.deployed for target in self.targets.values()})
        with self._progress("cost", programs, "programs") as progress:
            write_inference_cost(
                path, self.predictor.classifier, self.targets, size, progress.advance
            )

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
            with self._progress(f"check {name}", run_all.PARTS, "parts") as progress:
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
        chosen = self._choose_tests(self.config.eval.check_images)
        for name in self.targets:
            yield name, self._model_under_test(name, chosen)

    def _second_opinion(self, name: str, predictions: pa.Table) -> second_opinion.SecondOpinion:
        """Attacks what the evaluation left correct by other algorithms."""
        model = self._model_under_test(name, self._choose_tests(self.config.eval.second_images))
        attacks = second_opinion.other_attacks(self.config)
        total = len(model) * len(attacks)
        with self._progress(f"second opinion {name}", total, "images") as progress:
            return second_opinion.ask(model, attacks, predictions, progress.advance)

    def _choose_tests(self, count: int) -> np.ndarray:
        """Returns positions of at most `count` test images, as many of each class."""
        test = np.array(self.splits.test)
        return test[choose_examples(self.dataset.labels[test], count, self.config.seed)]

    def _model_under_test(self, name: str, chosen: np.ndarray) -> ModelUnderTest:
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
            self.predictor, norm, self.batch_size, self.mesh, self._num_classes
        )

    def _draw_curves(self, model: ModelUnderTest) -> pa.Table:
        """Returns the rows of `curves.parquet`, those of this classifier added if they lack."""
        path, name = self.workdir / "curves.parquet", model.defense
        curves = read_curves(path, self._num_classes)
        if name in curves["defense"].unique().to_pylist():
            return curves
        starts = sum(attack.num_restarts for attack in curve_attacks(self.config))
        total = starts * len(model) * len(model.sources)
        total += len(searched_radii(self.config)) * len(model)
        with self._progress(f"curves {name}", total, "attacked images") as progress:
            rows = curve_rows(model, self.config, progress.advance)
        curves = pa.concat_tables([curves, rows])
        self._write(path.name, curves)
        return curves

    def _check_splits(self, predictions: pa.Table) -> run_all.Check:
        """Returns the check of what is in which split, by names, copies and looks."""
        splits, dataset = self.splits, self.dataset
        used = [*splits.train, *splits.validation, *splits.test]
        with self._progress("splits", len(used)) as progress:
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
        for line in _verdict(self.workdir / "self_checks.json"):
            self._say(line)

    @property
    def _num_classes(self) -> int:
        return len(self.dataset.class_names)

    def _predictions(self) -> pa.Table:
        """Returns the records so far."""
        return read_predictions(self.workdir / "predictions.parquet", self._num_classes)

    def _first_order_attacks(self) -> list[Attack]:
        return evaluation_attacks(self.config) or [evaluation_attack(self.config, "pgd")]

    def _share(self, indices: Sequence[int]) -> Share:
        """Returns which of these positions this process evaluates: whole batches."""
        return Share(len(indices), self.batch_size)

    def _batches(self, indices: Sequence[int], share: Share | None = None) -> Iterator[Batch]:
        """Yields the batches of images at these positions; of a share only those."""
        mine = np.asarray(indices)[share.mine] if share else indices
        return make_loader(self.dataset, mine, self.batch_size, shuffle_seed=None)

    def _write(self, name: str, table: pa.Table) -> None:
        """Writes a table of the run directory, in the first process."""
        if is_first():
            write_table(self.workdir / name, table)

    def _progress(self, stage: str, total: int, unit: str = "images") -> StageProgress:
        return StageProgress(self.console, stage, total, unit=unit)

    def _say(self, text: str) -> None:
        say(self.console, text)


def with_fewer_tests(splits: Splits, labels: np.ndarray, count: int, seed: int) -> Splits:
    """Returns the splits with `count` test images, as many of each class; 0: with all."""
    total = len(splits.test)
    if not 0 < count < total:
        return splits
    test = np.array(splits.test)
    chosen = test[choose_examples(labels[test], count, seed)].tolist()
    note = f"config.eval.images={count}: {count} of {total} test images are evaluated"
    return dataclasses.replace(splits, test=chosen, notes=[*splits.notes, note])


def _counted(images: Iterable[np.ndarray], progress: StageProgress) -> Iterator[np.ndarray]:
    for image in images:
        yield image
        progress.advance()


def _verdict(path: Path) -> list[str]:
    """Returns what the self-checks say, one line for the whole and one for each that fails."""
    if not path.exists():
        return ["self-checks: not run (eval.checks=False)"]
    checks = run_all.read_self_checks(path)
    passed = sum(check.verdict == "pass" for check in checks)
    verdict = f"{headline(checks)}; {passed} of {len(checks)} pass"
    lines = [f"self-checks of the measurement: {verdict}"]
    return lines + [
        f"{c.verdict}: {c.number} {c.name}, {c.defense or 'run'}: {c.explanation}"
        for c in checks
        if c.verdict != "pass"
    ]
