"""Stages of a run beside attacks and checks: each adds what is not there yet."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from medadv_jax.attacks import Attack
from medadv_jax.distributed import is_first, put_batch, wait
from medadv_jax.evaluation import example_images
from medadv_jax.evaluation.decision_threshold import (
    as_deployed,
    choose_threshold,
    read_thresholds,
    write_thresholds,
)
from medadv_jax.evaluation.inference_cost import write_inference_cost
from medadv_jax.evaluation.interpretability import (
    INTERPRETABILITY,
    MAPS,
    METHODS,
    NOISE,
    SCHEMA,
    movement_rows,
)
from medadv_jax.evaluation.model_under_test import ModelUnderTest
from medadv_jax.evaluation.predictions import (
    prediction_rows,
    read_arrays,
    read_predictions,
    read_table,
    write_arrays,
    write_table,
)
from medadv_jax.evaluation.saliency import explained, make_maps
from medadv_jax.evaluation.saved_images import ATTACKED_IMAGES, worst_images, write_images
from medadv_jax.evaluation.stages import Evaluation
from medadv_jax.evaluation.threat_models import (
    Source,
    evaluation_attacks,
    searching_attacks,
    universal_attack,
)
from medadv_jax.evaluation.uncertainty import CALIBRATION, write_uncertainty
from medadv_jax.evaluation.universal_perturbation import PERTURBATIONS
from medadv_jax.progress import say

SHOWN = 4  # images whose maps are kept


def with_thresholds(evaluation: Evaluation) -> Evaluation:
    """Returns the evaluation of classifiers that decide as `config.eval.threshold` says.

    What is chosen on the clean validation images is in `thresholds.json`.
    """
    if evaluation.config.eval.threshold == "argmax":
        return evaluation
    wait("thresholds")
    found, targets = read_thresholds(evaluation.workdir), evaluation.targets
    for name in [name for name in targets if name not in found]:
        clean = evaluation.predict_clean(name, evaluation.splits.validation)
        found[name] = choose_threshold(clean.logits[:, 0], clean.label)
    if is_first():
        write_thresholds(evaluation.workdir, found)
    for name in targets:
        say(evaluation.console, f"threshold {name}: {found[name].probability:.3f} for class 1")
    decided = {name: as_deployed(each, found[name]) for name, each in targets.items()}
    return dataclasses.replace(evaluation, targets=decided)


def keep_pictures(evaluation: Evaluation) -> None:
    """Keeps a few attacked test images, under PGD or the last of `eval.attacks`: `pictures.npz`."""
    path, examples = evaluation.workdir / "pictures.npz", evaluation.dataset.examples
    if path.exists() or not is_first():
        return
    say(evaluation.console, "pictures: a few test images under attack")
    attacks, shown = evaluation.attacks_to_show()
    chosen = example_images.choose(
        examples, evaluation.splits.test, evaluation.num_classes, evaluation.batch_size
    )
    batch = next(evaluation.batches(chosen))
    targets, key = evaluation.targets, jax.random.key(evaluation.config.seed)
    with evaluation.progress("pictures", len(targets), "classifiers") as progress:
        arrays = example_images.take(
            evaluation.predictor, attacks, shown, targets, put_batch(evaluation.mesh, batch), key,
            progress.advance,
        )  # fmt: skip
    ids = [examples[i].id for i in batch["index"][batch["mask"] > 0]]
    write_arrays(path, {**arrays, "example": np.array(ids)})


def measure_cost(evaluation: Evaluation) -> None:
    """Counts and times the prediction of one image: `inference_cost.json`."""
    path, size = evaluation.workdir / "inference_cost.json", evaluation.config.data.image_size
    if path.exists() or not is_first():
        return
    targets, classifier = evaluation.targets, evaluation.predictor.classifier
    programs = len({target.deployed for target in targets.values()})
    with evaluation.progress("cost", programs, "programs") as progress:
        write_inference_cost(path, classifier, targets, size, progress.advance)


def calibrate(evaluation: Evaluation) -> None:
    """Keeps the scores of the clean validation images, and what follows of them for test images:
    `calibration.parquet`, `uncertainty.csv`."""
    wait("calibration")
    path, validation = evaluation.workdir / CALIBRATION, evaluation.splits.validation
    own = len(evaluation.share(validation).mine)
    table = read_predictions(path, evaluation.num_classes)
    for name in _missing(evaluation, table):
        with evaluation.progress(f"calibrate {name}", own) as progress:
            clean = evaluation.predict_clean(name, validation, progress.advance)
        examples = [evaluation.dataset.examples[i] for i in clean.index]
        rows = prediction_rows(
            (name, "none", "clean", 0.0), examples, clean.score[:, 0], clean.predicted[:, 0]
        )
        table = pa.concat_tables([table, rows])
        evaluation.write(CALIBRATION, table)
    if not is_first():
        return
    predictions = evaluation.workdir / "predictions.parquet"
    write_uncertainty(
        evaluation.workdir / "uncertainty.csv",
        read_predictions(predictions, evaluation.num_classes), table,
    )  # fmt: skip


def explain(evaluation: Evaluation) -> None:
    """Compares saliency maps of clean and of changed test images, as many as
    `eval.saliency_images`: `interpretability.parquet`, `saliency_maps.npz`."""
    count, path = evaluation.config.eval.saliency_images, evaluation.workdir / INTERPRETABILITY
    table = read_table(path, SCHEMA)
    for name in _missing(evaluation, table) if count and is_first() else ():
        model = evaluation.model_under_test(name, evaluation.choose_tests(count))
        with evaluation.progress(f"explain {name}", 3 * len(model), "maps") as progress:
            rows, arrays = _explain(model, *evaluation.attacks_to_show(), progress.advance)
        maps = evaluation.workdir / MAPS
        write_arrays(maps, {**read_arrays(maps), **arrays})
        table = pa.concat_tables([table, rows])
        write_table(path, table)


def _explain(
    model: ModelUnderTest,
    attacks: Sequence[Attack],
    shown: Attack,
    advance: Callable[[int], None],
) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Returns the records of one classifier, and its images and maps that are kept to look at."""
    epsilon, source = float(shown.epsilon), Source(model.target.deployed, model.target.variables)
    images = {
        "clean": model.images,
        shown.name: model.evaluated(attacks, source)[list(attacks).index(shown)],
        NOISE: model.noise(epsilon, 0, shown.restriction),
    }
    predicted = {name: model.logits(each).argmax(axis=1) for name, each in images.items()}
    own = explained(model.predictor.classifier, model.target.deployed)
    maps_fn, maps = make_maps(own, "full"), {}
    for name, pixels in images.items():
        maps[name] = _maps(model, maps_fn, pixels, predicted["clean"])
        advance(len(model))
    rows = [
        movement_rows(
            (model.defense, method, name, epsilon), model.examples, predicted["clean"],
            predicted[name], maps["clean"][number], maps[name][number],
        )
        for number, method in enumerate(METHODS)
        for name in (shown.name, NOISE)
    ]  # fmt: skip
    kept = np.sort(np.unique(model.labels, return_index=True)[1])[:SHOWN]  # one of each class
    arrays = {"example": np.array([model.examples[i].id for i in kept])}
    for name in ("clean", shown.name):
        kind = "clean" if name == "clean" else "attacked"
        arrays[f"{model.defense}/{kind}"] = images[name][kept]
        for method, found in zip(METHODS, maps[name], strict=True):
            arrays[f"{model.defense}/{kind}/{method}"] = found[kept]
    return pa.concat_tables(rows), arrays


def _maps(
    model: ModelUnderTest, maps_fn: Callable[..., Any], pixels: np.ndarray, classes: np.ndarray
) -> list[np.ndarray]:
    """Returns the maps (n, h, w) of each of `METHODS` for the logits of these classes (n,)."""
    found, size = [], model.queue.slots
    for first in range(0, len(pixels), size):
        rows = np.arange(first, first + size) % len(pixels)
        batch = model.queue.put((pixels[rows], classes[rows]))
        found.append(jax.device_get(maps_fn(model.target.variables, *batch)))
    return [np.concatenate(each)[: len(pixels)] for each in zip(*found, strict=True)]


def save_images(evaluation: Evaluation) -> None:
    """Saves test images as the adaptive attacker leaves them, as many as `eval.save_images`:
    `attacked_images/<defense>/`."""
    wait("images")
    count, attacks = evaluation.config.eval.save_images, evaluation_attacks(evaluation.config)
    for name in evaluation.targets if count else ():
        folder = evaluation.workdir / ATTACKED_IMAGES / name
        if not folder.exists():
            model = evaluation.model_under_test(name, evaluation.choose_tests(count))
            searching = searching_attacks(evaluation.config)
            total = len(model) * (len(attacks) + len(searching))
            with evaluation.progress(f"save images {name}", total) as progress:
                found = worst_images(model, attacks, searching, progress.advance)
            universal = universal_attack(evaluation.config, evaluation.batch_size)
            if universal:
                delta = read_arrays(evaluation.workdir / PERTURBATIONS)[name]
                found[universal.name] = np.asarray(universal.apply(model.images, delta))
            if is_first():
                write_images(folder, model, found)


def _missing(evaluation: Evaluation, table: pa.Table) -> Iterable[str]:
    """Returns the defences that a record has no rows of."""
    there = table["defense"].unique().to_pylist() if table.num_rows else []
    return [name for name in evaluation.targets if name not in there]
