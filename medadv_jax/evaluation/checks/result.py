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
