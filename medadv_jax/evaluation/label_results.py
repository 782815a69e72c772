"""Clean test images of data with several labels an image: the area under the ROC curve of each.

Two files: `label_predictions.parquet` has a row for each image and label, `label_results.csv` is
derived from it.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from rich.console import Console

from medadv_jax.defenses.multi_label import masked_binary_cross_entropy
from medadv_jax.distributed import is_first
from medadv_jax.evaluation.intervals import auc_interval
from medadv_jax.evaluation.metrics import auc_of
from medadv_jax.evaluation.predictions import read_table, write_csv
from medadv_jax.evaluation.predictor import Predictions
from medadv_jax.evaluation.record_names import LABEL_PREDICTIONS, LABEL_RESULTS
from medadv_jax.evaluation.stages import Evaluation
from medadv_jax.evaluation.statistics import cluster_weights
from medadv_jax.progress import say

_SCHEMA = pa.schema({
    "example": pa.string(), "group": pa.string(), "finding": pa.string(), "label": pa.int8(),
    "score": pa.float32(),
})  # fmt: skip
_HEAD = ["dataset", "model", "finding", "n", "positives", "auc", "auc_low", "auc_high"]


def mean_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the mean area under the ROC curve over the labels that have both values.

    Args:
      labels: (n, L) integer: 1, 0, or -1, which is left out.
      scores: (n, L) float, higher for images with the label.

    Returns:
      0.5, the value of chance, where no label has both values.
    """
    found = []
    for label, score in zip(labels.T, scores.T, strict=True):
        known = label >= 0
        if (auc := auc_of(label[known] == 1, score[known], {})) is not None:
            found.append(auc)
    return float(np.mean(found)) if found else 0.5


def mean_auc_and_loss(predictions: Predictions) -> dict[str, float]:
    """Returns what chooses the best checkpoint: `mean_auc`, and the loss of the training."""
    labels, logits = predictions.label, predictions.logits[:, 0]
    weights = jnp.ones(len(labels), jnp.float32)
    loss = masked_binary_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), weights)
    return {"mean_auc": mean_auc(labels, logits), "loss": float(loss)}


def measure_labels(evaluation: Evaluation) -> None:
    """Measures `base` on the clean test images, and writes the two files."""
    path = evaluation.workdir / LABEL_PREDICTIONS
    if not path.exists():
        evaluation.write(path.name, _predict(evaluation))
    if is_first():
        names, config = evaluation.dataset.class_names, evaluation.config
        lines = [*result_lines(read_table(path), names)]
        begin = [evaluation.dataset.name, config.model.name]
        write_csv(evaluation.workdir / LABEL_RESULTS, [_HEAD, *([*begin, *e] for e in lines)])
        _print(evaluation.console, lines)


def _predict(evaluation: Evaluation) -> pa.Table:
    test = evaluation.splits.test
    with evaluation.progress("evaluate base", len(evaluation.share(test).mine)) as progress:
        found = evaluation.predict_clean("base", test, progress.advance)
    examples = [evaluation.dataset.examples[i] for i in found.index]
    names, scores = evaluation.dataset.class_names, np.asarray(jax.nn.sigmoid(found.logits[:, 0]))
    columns = {
        "example": [example.id for example in examples for _ in names],
        "group": [example.group for example in examples for _ in names],
        "finding": [name for _ in examples for name in names],
        "label": found.label.ravel(),
        "score": scores.ravel(),
    }
    return pa.table(columns, _SCHEMA)


Line = tuple[str, int, int | None, float | None, float | None, float | None]


def result_lines(table: pa.Table, names: tuple[str, ...]) -> Iterator[Line]:
    """Yields (finding, images, positives, AUC, its 95 % interval) of each label, then the mean.

    The interval is of a bootstrap of whole patients. Labels that are unknown are left out; a label
    of one value has no AUC, and is left out of the mean, which has no interval.
    """
    every = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    found = []
    for name in names:
        of = (every["finding"] == name) & (every["label"] >= 0)
        positive, score, groups = every["label"][of] == 1, every["score"][of], every["group"][of]
        auc, (low, high) = auc_of(positive, score, {}), (None, None)
        if auc is not None:
            found.append(auc)
            interval = auc_interval(positive, score, groups, cluster_weights(groups))
            low, high = interval or (None, None)
        yield name, len(positive), int(positive.sum()), auc, low, high
    images = len(np.unique(every["example"]))
    yield "mean", images, None, float(np.mean(found)) if found else None, None, None


def _print(console: Console, lines: list[Line]) -> None:
    for name, n, positives, auc, low, high in lines:
        value = "–" if auc is None else f"{auc:.3f}"
        between = "" if low is None else f" ({low:.3f}–{high:.3f})"
        count = "" if name == "mean" else f", {positives} of {n} images have it"
        say(console, f"AUC {name}: {value}{between}{count}")
