"""How far explanations move under attack: `interpretability.parquet`, and maps to look at.

Grad-CAM and integrated gradients (`saliency.py`) of a clean and of an attacked image explain the
same logit, that of the class predicted for the clean image. Two numbers compare such a pair of maps
(Ghorbani et al. 2019, "Interpretation of neural networks is fragile"): Spearman's rank correlation
of all places, and which share of the strongest places is the same. Uniform noise of the same ε is
compared too: what remains beside it is the attack's doing.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import scipy  # `stats` is loaded at its first use

from medadv_jax.data.splits import Example

INTERPRETABILITY, MAPS = "interpretability.parquet", "saliency_maps.npz"
METHODS = ("integrated_gradients", "grad_cam")
NOISE = "noise"
TOP = 0.1  # share of the places of a map that count as the strongest

SCHEMA = pa.schema(
    [
        ("defense", pa.string()),
        ("method", pa.string()),  # of METHODS
        ("evaluation", pa.string()),  # the attack, or noise
        ("epsilon", pa.float64()),  # pixels in [0, 1]
        ("example", pa.string()),
        ("group", pa.string()),  # patient or case
        ("label", pa.int32()),
        ("explained", pa.int32()),  # the class predicted for the clean image
        ("predicted", pa.int32()),  # for the changed image
        ("rank_correlation", pa.float64()),  # null: one of the maps is the same everywhere
        ("top_intersection", pa.float64()),  # share of the strongest places
        ("places", pa.int32()),  # of a map
    ]
)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns Spearman's rank correlation of two maps of one shape; None if one is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic)


def top_intersection(a: np.ndarray, b: np.ndarray, share: float = TOP) -> float:
    """Returns which share of the strongest places of map `a` is among those of map `b`.

    `share` of the places, at least one, are the strongest; of equal ones the first.
    """
    count = max(1, round(share * a.size))
    strongest = [set(np.argsort(-each.ravel(), kind="stable")[:count].tolist()) for each in (a, b)]
    return len(strongest[0] & strongest[1]) / count


def movement_rows(
    key: tuple[str, str, str, float],
    examples: Sequence[Example],
    explained: np.ndarray,
    predicted: np.ndarray,
    clean: np.ndarray,
    changed: np.ndarray,
) -> pa.Table:
    """Returns the records of one classifier, method and change.

    Args:
      key: (defense, method, evaluation, epsilon).
      examples: n examples.
      explained: (n,) the class whose logit the maps explain.
      predicted: (n,) for the changed images.
      clean, changed: (n, h, w) maps.
    """
    n = len(examples)
    pairs = list(zip(clean, changed, strict=True))
    columns = {name: [value] * n for name, value in zip(SCHEMA.names[:4], key, strict=True)}
    columns |= {
        "example": [e.id for e in examples],
        "group": [e.group for e in examples],
        "label": [e.label for e in examples],
        "explained": explained,
        "predicted": predicted,
        "rank_correlation": [rank_correlation(*pair) for pair in pairs],
        "top_intersection": [top_intersection(*pair) for pair in pairs],
        "places": [clean[0].size] * n,
    }
    return pa.table(columns, schema=SCHEMA)
