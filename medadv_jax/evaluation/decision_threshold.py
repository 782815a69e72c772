"""The decision between two classes: the larger logit, or a threshold chosen on validation images.

"Class 1 where its probability p is above t" is "class 1 where z₁ − z₀ > log(t / (1 − t))": a
constant added to the logit of class 1. The constant becomes part of the deployed classifier, so
that attacks, gradients and predictions all follow one decision. `thresholds.json` keeps it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medadv_jax.evaluation.threat_models import Target
from medadv_jax.files import read_json, write_json

THRESHOLDS = "thresholds.json"  # in a run directory


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A decision between two classes.

    Attributes:
      bias: added to the logit of class 1.
      probability: the threshold on the network's own probability of class 1.
      youden: sensitivity + specificity − 1 on the validation images; `youden_argmax` without it.
      youden_argmax: see `youden`.
      images: validation images.
    """

    bias: float
    probability: float
    youden: float
    youden_argmax: float
    images: int


def choose_threshold(logits: np.ndarray, label: np.ndarray) -> Threshold:
    """Returns the threshold of the largest Youden's J (Youden 1950); of equal ones the nearest to
    the larger logit's.

    Args:
      logits: (n, 2) of clean validation images.
      label: (n,) 0 or 1; without both classes nothing is chosen, and the bias is 0.
    """
    gap = logits[:, 1].astype(np.float64) - logits[:, 0]
    values = np.unique(gap)
    # Half way between neighbours, so that no image lies on the boundary.
    cuts = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2])
    positive = label == 1
    if positive.all() or not positive.any():
        return Threshold(0.0, 0.5, 0.0, 0.0, len(label))
    youden = _share_above(gap[positive], cuts) - _share_above(gap[~positive], cuts)
    best = np.flatnonzero(youden >= youden.max() - 1e-12)
    cut = float(cuts[best[np.abs(cuts[best]).argmin()]])
    return Threshold(
        bias=0.0 - cut, probability=float(1 / (1 + np.exp(-cut))), youden=float(youden.max()),
        youden_argmax=float(youden[0]), images=len(label),
    )  # fmt: skip


def _share_above(values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    return 1 - np.searchsorted(np.sort(values), cuts, side="right") / len(values)


def write_thresholds(workdir: Path, found: Mapping[str, Threshold]) -> None:
    """Writes `thresholds.json`: defence -> threshold."""
    write_json(
        workdir / THRESHOLDS, {name: dataclasses.asdict(each) for name, each in found.items()}
    )


def read_thresholds(workdir: Path) -> dict[str, Threshold]:
    """Returns defence -> threshold of a run; {} if it decides by the larger logit."""
    path = workdir / THRESHOLDS
    if not path.exists():
        return {}
    return read_json(
        path, read=lambda found: {name: Threshold(**each) for name, each in found.items()}
    )


def as_deployed(target: Target, threshold: Threshold | None) -> Target:
    """Returns a classifier that decides by a threshold; None: as it is."""
    if threshold is None:
        return target
    bias = np.array([0.0, threshold.bias], np.float32)
    return target._replace(variables={**target.variables, "logit_bias": bias})
