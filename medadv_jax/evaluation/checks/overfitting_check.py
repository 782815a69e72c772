"""Self-check 13: training with attacks of one step has not overfitted to such attacks.

Catastrophic overfitting (Wong et al. 2020): within an epoch or less the accuracy under
PGD falls to nothing, while that under FGSM, which is much like the attack of training, stays high.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medadv_jax.evaluation.checks.result import Check, check, judge

PREFIX = "validation_adversarial_"  # of the names in metrics.jsonl
FGSM, PGD = "fgsm_accuracy", "pgd_accuracy"
FAR = 0.2  # share of validation images that FGSM leaves correct and PGD does not


def overfitting_checks(training: Sequence[Mapping[str, Any]], validation: int) -> list[Check]:
    """13. On validation images PGD is not far stronger than FGSM, at the deployed epoch.

    Args:
      training: lines of metrics.jsonl.
      validation: the number of validation images.

    Returns:
      A check for each defence that was trained with attacks of one step.
    """
    epochs: dict[str, list[Mapping[str, Any]]] = {}
    for line in training:
        if PREFIX + FGSM in line:
            epochs.setdefault(line["defense"], []).append(line)
    return [_check(defense, lines, validation) for defense, lines in epochs.items()]


def _check(defense: str, lines: Sequence[Mapping[str, Any]], validation: int) -> Check:
    def rank(line: Mapping[str, Any]) -> tuple[float, float, int]:
        return line[f"{PREFIX}accuracy"], -line[f"{PREFIX}loss"], line["epoch"]

    deployed = max(lines, key=rank)
    drop = accuracy_drop(deployed)
    fgsm, pgd = deployed[PREFIX + FGSM], deployed[PREFIX + PGD]
    fallen = [str(line["epoch"]) for line in lines if accuracy_drop(line) > FAR]
    return check(
        13, defense, judge(round(drop * validation), validation, FAR), drop,
        f"epoch {deployed['epoch']}, which is deployed: accuracy {fgsm:.3f} under FGSM, {pgd:.3f}"
        f" under PGD, on {validation} validation images (at most {FAR} apart); epochs that are"
        f" further apart: {', '.join(fallen) or 'none'}",
    )  # fmt: skip


def accuracy_drop(line: Mapping[str, Any]) -> float:
    """Returns the accuracy under FGSM less that under PGD, of an epoch's line; 0 if it has none."""
    return line.get(PREFIX + FGSM, 0.0) - line.get(PREFIX + PGD, 0.0)
