"""Paired comparisons of the defences of one run, on the same test images."""

import dataclasses
import itertools

import numpy as np

from medadv_jax.evaluation.metrics import is_trivial
from medadv_jax.evaluation.statistics import (
    RESAMPLED,
    cluster_bootstrap,
    holm,
    mcnemar_exact,
    ratio_statistic,
)
from medadv_jax.report.records import RunRecords
from medadv_jax.report.tables import Cell, Estimate, Table, cell_text, group_starts, number_text

LEVEL = 0.05
ATTACKED, CLEAN = "worst attack, adaptive", "clean"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two defences on the same images.

    Attributes:
      on: the images, ATTACKED or CLEAN.
      a, b: the defences.
      difference: accuracy of a minus that of b, with the interval by patient.
      only_a, only_b: number of images that only a, or only b, classifies correctly.
      p, p_holm: of McNemar's exact test; adjusted over all comparisons of the run.
    """

    on: str
    a: str
    b: str
    difference: Estimate
    only_a: int
    only_b: int
    p: float
    p_holm: float

    @property
    def significant(self) -> bool:
        """Whether p_holm is below 0.05 and the interval, if there is one, excludes 0.

        The interval is needed, too, because McNemar's test assumes that images are independent.
        """
        interval = self.difference.interval
        apart = interval is None or interval[0] > 0 or interval[1] < 0
        return self.p_holm < LEVEL and apart


def correct_by_defense(run: RunRecords, on: str) -> dict[str, np.ndarray]:
    """Returns which images are classified correctly, (n,) bool, by each defence evaluated."""
    found = {d: run.clean(d) if on == CLEAN else run.worst(d) for d in run.defenses}
    return {d: o.predicted == run.label for d, o in found.items() if o is not None}


def compare(run: RunRecords) -> list[Comparison]:
    """Returns every pair of defences, attacked and clean, with p-values adjusted over all."""
    drafts = []
    for on in (ATTACKED, CLEAN):
        correct = correct_by_defense(run, on)
        for a, b in itertools.combinations(correct, 2):
            only_a, only_b, p = mcnemar_exact(correct[a], correct[b])
            difference = _difference(run, correct[a], correct[b])
            drafts.append(Comparison(on, a, b, difference, only_a, only_b, p, p_holm=p))
    adjusted = holm([draft.p for draft in drafts])
    return [dataclasses.replace(draft, p_holm=p) for draft, p in zip(drafts, adjusted, strict=True)]


def _difference(run: RunRecords, correct_a: np.ndarray, correct_b: np.ndarray) -> Estimate:
    difference = correct_a.astype(float) - correct_b.astype(float)
    mean = ratio_statistic(difference, np.ones(len(difference)), run.group)
    interval = cluster_bootstrap(mean, run.group, weights=run.weights)
    return Estimate(float(difference.mean()), interval, RESAMPLED)


def pairwise_table(comparisons: list[Comparison]) -> Table | None:
    """Returns the comparisons as a table, None without any."""
    if not comparisons:
        return None
    rows: list[tuple[Cell, ...]] = [
        (
            c.on, f"{c.a} − {c.b}", c.difference, c.only_a, c.only_b, _p_text(c.p),
            _p_text(c.p_holm), "yes" if c.significant else "no",
        )
        for c in comparisons
    ]  # fmt: skip
    return Table(
        "pairwise",
        "Is one defence better than another? Pairs on the same test images",
        (
            "images", "pair", "difference in accuracy", "only first correct", "only second correct",
            "p (McNemar)", "p (Holm)", "significant",
        ),
        rows,
        (
            "McNemar's exact test on images; Holm's correction over all rows of this table."
            " Significant: adjusted p below 0.05, and the interval of the difference, by resampling"
            " patients, leaves out 0; the test alone takes a patient's images for independent.",
        ),
        group_starts(rows),
    )  # fmt: skip


def attacked_accuracy(run: RunRecords) -> dict[str, float]:
    """Returns each defence's accuracy under the worst adaptive attack on each image."""
    return {d: float(correct.mean()) for d, correct in correct_by_defense(run, ATTACKED).items()}


def best_defense(run: RunRecords) -> str | None:
    """Returns the defence with the highest attacked accuracy, None without attacks."""
    accuracy = attacked_accuracy(run)
    return max(accuracy, key=accuracy.__getitem__) if accuracy else None


def is_best_significant(run: RunRecords, comparisons: list[Comparison]) -> bool:
    """Returns whether the best defence is significantly better than every other one."""
    best = best_defense(run)
    others = [d for d in attacked_accuracy(run) if d != best]
    pairs = [find(comparisons, ATTACKED, str(best), other) for other in others]
    return bool(pairs) and all(pair.significant for pair in pairs)


def conclusion(run: RunRecords, comparisons: list[Comparison]) -> tuple[str, ...]:
    """Returns sentences: which defence is best, by how much, and whether significantly."""
    accuracy = attacked_accuracy(run)
    if not accuracy:
        return ("Nothing was attacked, so no defence can be called best.",)
    best = max(accuracy, key=accuracy.__getitem__)
    if len(accuracy) == 1:
        return (f"{best} is the only classifier that was attacked: nothing to compare it with.",)
    others = [d for d in accuracy if d != best]
    second = max(others, key=accuracy.__getitem__)
    pair = find(comparisons, ATTACKED, best, second)
    first = f"{best} is best." if pair.significant else "None can be called best."
    if is_trivial(run.label, run.clean(best).predicted):
        first += f" On clean images {best} is no better than always predicting one class."
    difference = cell_text(Estimate(abs(pair.difference.value or 0.0), _interval_of(pair, best)))
    kind = "significant" if pair.significant else "not significant"
    p = _p_text(pair.p_holm) if pair.p_holm < 0.001 else f"= {_p_text(pair.p_holm)}"
    second_sentence = (
        f"Under attack {best} has {accuracy[best]:.3f}, {second} {accuracy[second]:.3f}: a"
        f" difference of {difference}, {kind} (McNemar's p after Holm {p})."
    )
    rest = [d for d in others if d != second]
    beaten = [d for d in rest if find(comparisons, ATTACKED, best, d).significant]
    third = f"{best} is significantly better than {' and '.join(beaten)}." if beaten else ""
    return tuple(filter(None, (first, second_sentence, third, cost_on_clean(run, comparisons))))


def cost_on_clean(run: RunRecords, comparisons: list[Comparison]) -> str:
    """Returns a sentence about the best defence on clean images, "" if it is base."""
    best = best_defense(run)
    if best in (None, "base") or "base" not in run.defenses:
        return ""
    pair = find(comparisons, CLEAN, str(best), "base")
    change = (pair.difference.value or 0.0) * (1 if pair.a == best else -1)
    kind = "significant" if pair.significant else "not significant"
    return f"On clean images {best} differs from base by {number_text(change, '+')}, {kind}."


def find(comparisons: list[Comparison], on: str, a: str, b: str) -> Comparison:
    """Returns the comparison of two defences, in either order."""
    return next(c for c in comparisons if c.on == on and {c.a, c.b} == {a, b})


def _interval_of(pair: Comparison, best: str) -> tuple[float, float] | None:
    """Returns the interval of the accuracy of `best` minus that of the other."""
    interval = pair.difference.interval
    if interval is None or pair.a == best:
        return interval
    return 0.0 - interval[1], 0.0 - interval[0]  # not -0.0


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
