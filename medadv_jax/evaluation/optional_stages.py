"""Stages of a run beside attacks and checks: each adds its record if it is not there yet."""

from collections.abc import Iterable

import pyarrow as pa

from medadv_jax.evaluation.predictions import (
    prediction_rows,
    read_predictions,
    write_table,
)
from medadv_jax.evaluation.predictor import predict_all
from medadv_jax.evaluation.stages import Evaluation
from medadv_jax.evaluation.uncertainty import CALIBRATION, write_uncertainty


def calibrate(evaluation: Evaluation) -> None:
    """Keeps the scores of the clean validation images, and what follows of them for test images:
    `calibration.parquet`, `uncertainty.csv`."""
    path, validation = evaluation.workdir / CALIBRATION, evaluation.splits.validation
    table = read_predictions(path, evaluation.num_classes)
    for name in _missing(evaluation, table):
        target = evaluation.targets[name]
        with evaluation.progress(f"calibrate {name}", len(validation)) as progress:
            clean = predict_all(
                evaluation.predictor, [], [], target, evaluation.batches(validation),
                evaluation.mesh, evaluation.config.seed, progress.advance,
            )  # fmt: skip
        examples = [evaluation.dataset.examples[i] for i in clean.index]
        rows = prediction_rows(
            (name, "none", "clean", 0.0), examples, clean.score[:, 0], clean.predicted[:, 0]
        )
        table = pa.concat_tables([table, rows])
        write_table(path, table)
    predictions = evaluation.workdir / "predictions.parquet"
    write_uncertainty(
        evaluation.workdir / "uncertainty.csv",
        read_predictions(predictions, evaluation.num_classes), table,
    )  # fmt: skip


def _missing(evaluation: Evaluation, table: pa.Table) -> Iterable[str]:
    """Returns the defences that a record has no rows of."""
    there = table["defense"].unique().to_pylist() if table.num_rows else []
    return [name for name in evaluation.targets if name not in there]
