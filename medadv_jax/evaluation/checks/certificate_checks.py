"""Check 14: an attack finds nothing that a certificate excludes."""

import numpy as np
import scipy  # `stats` is loaded at its first use: half a second

from medadv_jax.evaluation.certificates import attacked_prediction, certified_correct
from medadv_jax.evaluation.checks.result import Check, check
from medadv_jax.evaluation.predictions import Columns

_SURE = 0.001  # probability of so few votes for a class that has one half of all


def certificates_hold(defense: str, columns: Columns) -> Check:
    """14. certified ≤ attacked ≤ clean, under PGD that follows the mean over the noise.

    No image that is certified at the attack's radius may lose the majority of its votes: fewer than
    one half of them, as an exact binomial test says (p < `_SURE`). Attacked accuracy counts what is
    right clean and under attack, so it is at most the clean one.

    Args:
      defense: whose.
      columns: its certificates.
    """
    tried = columns["attacked_radius"] > 0
    if not tried.any():
        return check(14, defense, "warn", None, "no certified image was attacked")
    label, radius = columns["label"][tried], columns["radius"][tried]
    predicted, attacked = columns["predicted"][tried], attacked_prediction(columns)[tried]
    at = float(columns["attacked_radius"][tried][0])
    promised = (predicted >= 0) & (radius >= at)
    votes = columns["attacked_votes"][tried]
    broken = sum(_lost(votes[i], predicted[i]) for i in np.flatnonzero(promised))
    certified = certified_correct(predicted, radius, label, at)
    clean, still = predicted == label, (predicted == label) & (attacked == label)
    return check(
        14, defense, "fail" if broken else "pass", broken / len(label),
        f"at the L2 radius {at:g}, certified {np.mean(certified):.3f}, attacked"
        f" {np.mean(still):.3f}, clean {np.mean(clean):.3f}; {broken} of {int(promised.sum())}"
        f" certified images are broken (limit 0); {len(label)} images",
    )  # fmt: skip


def _lost(votes: np.ndarray, predicted: int) -> bool:
    """Returns whether surely less than half of the votes (K,) are for a class."""
    return bool(scipy.stats.binom.cdf(votes[predicted], sum(votes), 0.5) < _SURE)
