"""Self-checks that read records: 4, 5 and 12. Nothing here runs a model."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from medadv_jax.evaluation.checks.result import Check, check, judge, worst
from medadv_jax.evaluation.metrics import is_trivial, larger_class
from medadv_jax.evaluation.predictions import Columns, correct_by, group_rows, to_columns
from medadv_jax.evaluation.statistics import holm, mcnemar_exact, proportion_interval

THREATS = ("none", "transfer", "oblivious", "adaptive")

_RISE = 0.005  # share of images by which accuracy may rise with the radius
_MORE_STEPS = 0.005  # share of images by which twice the steps may change accuracy

CurveCorrect = dict[tuple[float, int], np.ndarray]  # (epsilon, number of steps) -> (n,) bool


def columns_of(table: pa.Table, defense: str) -> Columns:
    """Returns the columns of the rows of one defence."""
    columns = to_columns(table)
    mine = columns["defense"] == defense
    return {name: column[mine] for name, column in columns.items()}


def curve_correct(columns: Columns) -> CurveCorrect:
    """Returns which images are correct at each point of a defence's PGD, by ε, then steps."""
    columns = {name: column[columns["evaluation"] == "pgd"] for name, column in columns.items()}
    correct = columns["predicted"] == columns["label"]
    points = group_rows(columns, ("epsilon", "num_steps"))
    return {point: correct[points[point]] for point in sorted(points)}


def correct_under(
    columns: Columns, threats: Sequence[str], epsilon: float | None = None
) -> dict[str, bool]:
    """Returns example -> is every record of these threat models correct, at this ε if given?"""
    rows = np.isin(columns["threat_model"], threats)
    if epsilon is not None:
        rows &= columns["epsilon"] == epsilon
    chosen = {name: columns[name][rows] for name in ("example", "predicted", "label")}
    return {example: good for (example,), good in correct_by(chosen, ("example",)).items()}


def larger_radius_breaks_more(
    defense: str,
    correct: CurveCorrect,
    labels: np.ndarray,
    steps: int,
    reaches_all: bool = True,
) -> Check:
    """4. Accuracy does not rise with ε, and where every image can be reached it is chance.

    `reaches_all`: does the largest ball hold every image? Not of an attacker who may change a
    patch only.
    """
    along = [(epsilon, correct[epsilon, n]) for epsilon, n in sorted(correct) if n == steps]
    counts = [int(each.sum()) for _, each in along]
    n, last = len(labels), counts[-1]
    rise = max(0, *(b - a for a, b in itertools.pairwise(counts)))
    chance = larger_class(labels) / n
    verdict = judge(rise, n, _RISE)
    if reaches_all:
        verdict = worst((verdict, judge(last, n, chance)))
    text = ", ".join(f"{epsilon:.3g}: {each.mean():.3f}" for epsilon, each in along)
    end = f" and end at {chance:.3f}" if reaches_all else ""
    return check(
        4, defense, verdict, rise / n,
        f"accuracy by ε {text}; it may rise by {_RISE:g}{end}; {n} images",
    )  # fmt: skip


def enough_steps(
    defense: str, correct: CurveCorrect, epsilon: float, steps: int, restarted: np.ndarray
) -> Check:
    """5. Neither twice the steps nor more random starts move the robust accuracy.

    Args:
      defense: whose.
      correct: from its curves.
      epsilon: of the headline.
      steps: of the evaluation.
      restarted: (n,) bool, correct at these, and from more random starts too.
    """
    once, twice = correct[epsilon, steps], correct[epsilon, 2 * steps]
    n, before = len(once), int(once.sum())
    changes = [int(twice.sum()) - before, int(restarted.sum()) - before]
    change = max(changes, key=abs)
    return check(
        5, defense, judge(abs(change), n, _MORE_STEPS), change / n,
        f"accuracy {once.mean():.3f} under {steps} steps, {twice.mean():.3f} under {2 * steps},"
        f" {restarted.mean():.3f} from more random starts: it may change by {_MORE_STEPS:g};"
        f" {n} images",
    )  # fmt: skip


def is_complete(
    defense: str, predictions: pa.Table, epsilon: float, planted: tuple[str, str]
) -> Check:
    """12. The records of the robust accuracy are complete; its attack finds what is planted.

    Args:
      defense: whose.
      predictions: of this defence and others, which it is compared with.
      epsilon: of the headline.
      planted: verdict and explanation of `attack_checks.finds_planted`.
    """
    columns = columns_of(predictions, defense)
    faults = _missing(columns, epsilon)
    text, own = "; ".join(faults), "fail"
    if not faults:
        text = _summary(columns, epsilon) + _paired(defense, predictions, epsilon)
        own = "pass"
        clean = columns["threat_model"] == "none"
        # No attack changes a classifier that always predicts one class.
        if is_trivial(columns["label"][clean], columns["predicted"][clean]):
            text, own = f"{text}; clean no better than to say one class always", "warn"
    verdict = worst((own, planted[0]))
    return check(12, defense, verdict, float(len(faults)), f"{text}; {planted[1]}")


def _missing(columns: Columns, epsilon: float) -> list[str]:
    """Returns what the records of a defence lack."""
    faults = []
    unknown = {*columns["threat_model"].tolist()} - {*THREATS}
    if unknown:
        faults.append(f"unknown threat model {', '.join(sorted(unknown))}")
    clean = correct_under(columns, ("none",), 0.0)
    if not clean:
        faults.append("no clean accuracy")
    robust = correct_under(columns, ("adaptive",), epsilon)
    if not robust:
        faults.append(f"no adaptive attack at ε = {epsilon:g}")
    keys = ("threat_model", "evaluation", "epsilon")
    counts = Counter(zip(*(columns[key].tolist() for key in keys), strict=True))
    short = [f"{threat} {name}" for (threat, name, _), n in counts.items() if n != len(clean)]
    if short or (robust and robust.keys() != clean.keys()):
        faults.append(f"other images than clean: {', '.join(short) or 'adaptive'}")
    return faults


def _summary(columns: Columns, epsilon: float) -> str:
    clean, robust = (
        correct_under(columns, (threat,), radius)
        for threat, radius in (("none", 0.0), ("adaptive", epsilon))
    )
    # An attacker may leave an image unchanged.
    robust = {example: good and clean[example] for example, good in robust.items()}
    n, correct = len(clean), sum(clean.values())
    left = sum(robust.values())
    broken = correct - left
    group_of = dict(zip(columns["example"].tolist(), columns["group"].tolist(), strict=True))
    groups = np.array([group_of[example] for example in robust])
    interval = proportion_interval(np.array([*robust.values()]), groups)
    low, high = interval or (0.0, 1.0)  # one patient gives no interval
    attacks = {*columns["evaluation"][columns["threat_model"] == "adaptive"].tolist()}
    rate = (
        f"{broken / correct:.3f} of those right when clean" if correct else "none right when clean"
    )
    return (
        f"clean {correct / n:.3f}, adaptive {left / n:.3f} ({low:.3f}–{high:.3f}) under"
        f" {', '.join(sorted(attacks))} at ε = {epsilon:g}, n = {n}; success on {rate},"
        f" {broken / n:.3f} of all"
    )


def _paired(defense: str, predictions: pa.Table, epsilon: float) -> str:
    """McNemar's test against each other defence on the same images, corrected for their number."""
    mine = correct_under(columns_of(predictions, defense), ("adaptive",), epsilon)
    p_values: dict[str, float] = {}
    for other in predictions["defense"].unique().to_pylist():
        theirs = correct_under(columns_of(predictions, other), ("adaptive",), epsilon)
        if other != defense and theirs.keys() == mine.keys():
            pairs = np.array([(good, theirs[example]) for example, good in mine.items()])
            p_values[other] = mcnemar_exact(pairs[:, 0], pairs[:, 1])[2]
    corrected = zip(p_values, holm([*p_values.values()]), strict=True)
    return "".join(f"; McNemar against {other} p = {p:.2g}" for other, p in corrected)
