"""Saying nothing where unsure: abstention by a threshold, and conformal prediction sets.

Reads scores only; no model runs. `calibration.parquet` has the scores of clean validation images,
`uncertainty.csv` what follows from them for each row of `results.csv`.

- Abstention: the classifier answers where its largest probability is at least a threshold. The
  risk-coverage curve (El-Yaniv & Wiener 2010) has the share of errors among the answers against the
  share of images that are answered, over all thresholds.
- Split-conformal sets (Papadopoulos et al. 2002; Sadinle et al. 2019): all classes of at least a
  probability, chosen so that the set holds the label of a new clean image with probability 1 - α.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from medadv_jax.evaluation.predictions import (
    KEYS,
    Columns,
    group_rows,
    read_scores,
    to_columns,
    write_csv,
)

CALIBRATION = "calibration.parquet"
ALPHA = 0.1  # the share of labels that sets may miss
KEPT = 0.9  # the share of clean validation images that are answered
COLUMNS = (
    *KEYS, "n", "aurc", "threshold", "answered", "accuracy_of_answers", "probability",
    "set_coverage", "set_size", "empty_sets",
)  # fmt: skip


class RiskCoverage(NamedTuple):
    """A risk-coverage curve of n images, from the surest answer to all.

    Attributes:
      coverage: (n,) 1/n … 1, the share of images that are answered.
      risk: (n,) the share of errors among them.
    """

    coverage: np.ndarray
    risk: np.ndarray

    @property
    def area(self) -> float:
        """Mean risk over all coverages (AURC; Geifman & El-Yaniv 2017): lower is better."""
        return float(self.risk.mean())


class Answers(NamedTuple):
    """What is left if unsure images are not answered.

    Attributes:
      coverage: the share of images that are answered.
      accuracy: of the answers; None: there are none.
    """

    coverage: float
    accuracy: float | None


class Sets(NamedTuple):
    """Prediction sets of n images.

    Attributes:
      coverage: the share of sets that hold the label.
      size: mean number of classes.
      empty: the share of sets without a class.
    """

    coverage: float
    size: float
    empty: float


def probabilities(score: np.ndarray) -> np.ndarray:
    """Returns (n, K) float64 from records' scores: (n,) of class 1 of two, or (n, K)."""
    score = score.astype(np.float64)
    return score if score.ndim == 2 else np.stack([1 - score, score], axis=1)


def risk_coverage(score: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """Returns the curve of n images by their largest probability.

    Args:
      score: see `probabilities`.
      correct: (n,) bool. Images of equal confidence are answered together: in between, the curve
        has their mean.
    """
    confidence, n = probabilities(score).max(axis=1), len(correct)
    _, group = np.unique(-confidence, return_inverse=True)
    share = np.bincount(group, ~correct) / np.bincount(group)  # of errors at each confidence
    answered = np.arange(1, n + 1)
    return RiskCoverage(answered / n, np.cumsum(share[np.sort(group)]) / answered)


def answer_threshold(score: np.ndarray, kept: float = KEPT) -> float:
    """Returns the largest probability at which at least the share `kept` of images is answered."""
    confidence = np.sort(probabilities(score).max(axis=1))[::-1]
    return float(confidence[max(math.ceil(kept * len(confidence) - 1e-9), 1) - 1])


def answers_above(score: np.ndarray, correct: np.ndarray, threshold: float) -> Answers:
    """Returns what is left of images (n, …) whose largest probability is at least `threshold`."""
    answered = probabilities(score).max(axis=1) >= threshold
    accuracy = float(correct[answered].mean()) if answered.any() else None
    return Answers(float(answered.mean()), accuracy)


def conformal_probability(score: np.ndarray, label: np.ndarray, alpha: float = ALPHA) -> float:
    """Returns the probability that a class of a set has at least.

    It is the ⌈(n + 1)(1 - α)⌉-th largest probability of the label among n calibration images: for a
    new image of the same distribution, the set then holds the label with probability at least
    1 - α. 0, which gives sets of all classes, if n is too small for α.
    """
    own = np.sort(np.take_along_axis(probabilities(score), label[:, None], axis=1)[:, 0])[::-1]
    rank = math.ceil((len(own) + 1) * (1 - alpha) - 1e-9)
    return float(own[rank - 1]) if rank <= len(own) else 0.0


def prediction_sets(score: np.ndarray, probability: float) -> np.ndarray:
    """Returns (n, K) bool: the classes of at least this probability."""
    return probabilities(score) >= probability


def describe_sets(sets: np.ndarray, label: np.ndarray) -> Sets:
    """Returns coverage and size of sets (n, K) for labels (n,)."""
    holds, sizes = np.take_along_axis(sets, label[:, None], axis=1), sets.sum(axis=1)
    return Sets(float(holds.mean()), float(sizes.mean()), float((sizes == 0).mean()))


def write_uncertainty(path: Path, predictions: pa.Table, calibration: pa.Table) -> None:
    """Writes `uncertainty.csv`: a row for each of `results.csv` whose defence is calibrated."""
    columns, known = to_columns(predictions), to_columns(calibration)
    groups = group_rows(known, ("defense",))
    rows = [
        (*key, *_numbers(columns, indices, known, groups[key[0],]))
        for key, indices in group_rows(columns, KEYS).items()
        if (key[0],) in groups
    ]
    write_csv(path, [COLUMNS, *rows])


def _numbers(
    columns: Columns, rows: np.ndarray, calibration: Columns, own: np.ndarray
) -> tuple[float | None, ...]:
    """Returns the cells of a row after its key."""
    score, label = read_scores(columns)[rows], columns["label"][rows]
    correct = columns["predicted"][rows] == label
    clean = read_scores(calibration)[own]
    threshold = answer_threshold(clean)
    probability = conformal_probability(clean, calibration["label"][own])
    return (
        len(rows), risk_coverage(score, correct).area, threshold,
        *answers_above(score, correct, threshold), probability,
        *describe_sets(prediction_sets(score, probability), label),
    )  # fmt: skip
