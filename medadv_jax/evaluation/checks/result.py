"""The result of a self-check: its number, pass, warn or fail, and why in one line."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import scipy  # `stats` is loaded at its first use: half a second

from medadv_jax.files import read_json, write_json

NAMES = {
    1: "attacks what is deployed",
    2: "stays within ε and pixels",
    3: "stronger attacks break more",
    4: "larger ε breaks more",
    5: "enough steps",
    6: "gradients are there",
    7: "no other attack breaks more",
    8: "the same again",
    9: "logits, not probabilities",
    10: "attacks change nothing else",
    11: "nothing leaks between splits",
    12: "numbers are complete",
    13: "no catastrophic overfitting",
    14: "certificates hold",  # of smoothed classifiers, after `scripts/certify.py`
}
# What a failure would mean for the numbers of a run.
WHY = {
    1: "an attack on another function than the deployed one says nothing of the deployed one",
    2: "an attack that leaves the allowed images breaks what no real attacker could",
    3: "a weak attack that breaks more than a strong one shows that the strong one is broken",
    4: "an attack with more room must not do worse, and without limits it must win",
    5: "if more steps still break more images, the robust accuracy is too high",
    6: "without a gradient an attack is blind, and a classifier only looks robust",
    7: "what another attack breaks, the reported accuracy has counted as robust",
    8: "a classifier that answers at random looks robust to an attack on one of its answers",
    9: "rounded probabilities hide the gradient that an attack needs",
    10: "an attack that changes the network, or other images, measures something else",
    11: "images of one patient in training and test make every accuracy too high",
    12: "a number without its attack, its images and its interval cannot be compared",
    13: "training on one-step attacks can collapse: robust to one step, defenceless to more",
    14: "a guarantee that an attack breaks is none",
}
VERDICTS = ("pass", "warn", "fail")


class Check(NamedTuple):
    """The result of one check.

    Attributes:
      number: 1 to 14, as in `NAMES`.
      name: from `NAMES`.
      defense: whose; "all" where it is about the run, "" where there is only one classifier.
      verdict: "pass", "warn" or "fail".
      value: what was measured; None if nothing could be.
      explanation: one line: what was measured, the limit, on how many.
    """

    number: int
    name: str
    defense: str
    verdict: str
    value: float | None
    explanation: str


def check(number: int, defense: str, verdict: str, value: float | None, why: str) -> Check:
    """Returns the result of check `number`."""
    return Check(number, NAMES[number], defense, verdict, value, why)


def judge(count: int, n: int, limit: float) -> str:
    """Returns the verdict on `count` of `n`.

    Returns:
      "pass": at most the share `limit`; "fail": surely more, as the exact 95 % interval lies
      above it; "warn": more in these few examples.
    """
    if count <= limit * n:
        return "pass"
    low = scipy.stats.binomtest(count, n).proportion_ci(0.95, method="exact").low
    return "fail" if low > limit else "warn"


def worst(verdicts: Iterable[str]) -> str:
    """Returns the worst verdict, "pass" of none."""
    return max(verdicts, key=VERDICTS.index, default="pass")


def share(count: int, n: int) -> float | None:
    """Returns count / n, None of none."""
    return count / n if n else None


def headline(checks: Sequence[Check]) -> str:
    """Returns "trusted", or "not to be trusted, because ..." with the names of what failed."""
    failed: dict[str, list[str]] = {}
    for each in checks:
        if each.verdict == "fail":
            failed.setdefault(each.name, []).append(each.defense)
    if not failed:
        return "trusted"
    reasons = (
        f"“{name}” fails" + (f" ({', '.join(of)})" if any(of) else "")
        for name, of in failed.items()
    )
    return f"not to be trusted, because {'; '.join(reasons)}"


def write_self_checks(path: Path, checks: Sequence[Check]) -> None:
    """Writes `self_checks.json`: the headline, and the checks by number and defence."""
    ordered = sorted(checks, key=lambda each: each.number)
    content = {"headline": headline(ordered), "checks": [each._asdict() for each in ordered]}
    write_json(path, content)


def read_self_checks(path: Path) -> list[Check]:
    """Returns the checks of a run so far, none if the file is missing."""
    if not path.exists():
        return []
    remedy = "delete it, and the checks are made anew"
    return read_json(path, remedy, lambda content: [Check(**each) for each in content["checks"]])
