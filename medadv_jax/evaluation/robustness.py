"""What `evaluate` returns: results for each image, their summary, and what the checks say."""

import dataclasses
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medadv_jax.evaluation.checks.result import Check, headline
from medadv_jax.evaluation.predictions import write_csv
from medadv_jax.evaluation.statistics import wilson_interval


class AttackRecord(NamedTuple):
    """What one attack did; each part of AutoAttack has its own.

    Attributes:
      attack: as it was asked for, such as "autoattack".
      part: the attack that ran, such as "fab".
      attacked: images.
      broken: images.
      passes: gradients of the network, or queries of Square, summed over images.
      seconds: compilation included.
    """

    attack: str
    part: str
    attacked: int
    broken: int
    passes: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Robustness:
    """Results of A attacks on n images.

    Attributes:
      attacks: A names.
      epsilon: radius of the ball, in pixels of [0, 1].
      norm: "linf" or "l2".
      labels: (n,) int32.
      predicted: (n,) int32, of the clean images.
      correct: (n, A) bool: correct when clean and under the attack?
      broken_by: (n,) text: the first attack, or part of AutoAttack, that broke the image; "clean"
        if it is misclassified without an attack, "" if it stays correct.
      pixels: (n, H, W, C) float32 in [0, 1]: an adversarial image where one was found, else the
        image itself.
      records: what each attack did, and how long it took.
      checks: whether the numbers can be trusted; empty if none was made.
    """

    attacks: tuple[str, ...]
    epsilon: float
    norm: str
    labels: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray
    broken_by: np.ndarray
    pixels: np.ndarray
    records: tuple[AttackRecord, ...]
    checks: tuple[Check, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of images that are classified correctly without an attack."""
        return float((self.predicted == self.labels).mean())

    @property
    def robust(self) -> np.ndarray:
        """(n,) bool: correct when clean and under every attack."""
        return (self.predicted == self.labels) & self.correct.all(axis=1)

    @property
    def robust_accuracy(self) -> float:
        """Share of images that stay correct under every attack."""
        return float(self.robust.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `robust_accuracy`, which takes images for independent."""
        return wilson_interval(int(self.robust.sum()), len(self.labels))

    @property
    def trusted(self) -> bool:
        """Whether checks were made and none fails."""
        return bool(self.checks) and all(each.verdict != "fail" for each in self.checks)

    def summary(self) -> str:
        """Returns a table of the attacks and the checks that did not pass, as plain text."""
        n, (low, high) = len(self.labels), self.interval
        lines = [
            f"{n} images, ε = {self.epsilon:.4g} ({self.norm})",
            f"{'attack':<24}{'attacked':>9}{'broken':>8}{'passes':>10}{'seconds':>9}",
        ]
        for record in self.records:
            own = record.attack == record.part
            name = record.part if own else f"{record.attack}: {record.part}"
            numbers = f"{record.attacked:>9}{record.broken:>8}{record.passes:>10}"
            lines.append(f"{name:<24}{numbers}{record.seconds:>9.1f}")
        lines.append(f"accuracy         {self.accuracy:.3f}")
        for name, column in zip(self.attacks, self.correct.T, strict=True):
            lines.append(f"under {name:<11}{column.mean():.3f}")
        lines.append(f"robust accuracy  {self.robust_accuracy:.3f} ({low:.3f}–{high:.3f})")
        return "\n".join([*lines, *self._verdict()])

    def _verdict(self) -> list[str]:
        if not self.checks:
            return ["checks: not made"]
        passed = sum(each.verdict == "pass" for each in self.checks)
        first = f"checks: {headline(self.checks)}; {passed} of {len(self.checks)} pass"
        return [first] + [
            f"{each.verdict}: {each.number} {each.name}: {each.explanation}"
            for each in self.checks
            if each.verdict != "pass"
        ]

    def rows(self) -> list[list[str]]:
        """Returns a line of names, and one line of text for each image."""
        head = ["image", "label", "predicted", *self.attacks, "broken_by"]
        columns = self.labels, self.predicted, self.correct, self.broken_by
        return [head] + [
            [str(i), str(label), str(predicted), *(str(int(c)) for c in correct), str(broken_by)]
            for i, (label, predicted, correct, broken_by) in enumerate(zip(*columns, strict=True))
        ]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Writes a line for each image: label, clean prediction, 1 or 0 for each attack."""
        write_csv(Path(path), self.rows())
