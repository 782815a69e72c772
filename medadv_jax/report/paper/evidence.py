"""Differences of accuracies between classifiers of several runs, on the same images."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # loads scipy.stats lazily; that takes 0.5 s

from medadv_jax.config import flatten
from medadv_jax.evaluation.statistics import Interval, cluster_bootstrap, ratio_statistic
from medadv_jax.report.aggregate import Group, pool
from medadv_jax.report.paper.tables import PAPER_EVALUATIONS
from medadv_jax.report.records import PURIFIED, RunRecords

CLEAN, ATTACKED = "clean", "attacked"
_CURVE = "curve "  # followed by an epsilon: accuracy in curves.parquet at that epsilon


class View(enum.Enum):
    """The attacker, and how accuracies under several attacks are combined."""

    PAPER = "mean over the attacks, oblivious of the purifier"
    WORST = "worst attack on each image, adaptive"


@dataclasses.dataclass(frozen=True)
class Term:
    """Names an accuracy.

    Attributes:
      model: the network.
      defense: its defence.
      what: CLEAN, ATTACKED, an attack's name or "curve EPSILON".
      fields: (field, value) of the config, where groups of one network differ by it.
    """

    model: str
    defense: str
    what: str
    fields: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The accuracy, or number, `higher` minus the accuracy `lower`."""

    label: str
    higher: Term | float
    lower: Term


@dataclasses.dataclass(frozen=True)
class Result:
    """A contrast's value and 95 % interval; None, with the reason, where there is none."""

    label: str
    value: float | None
    interval: Interval | None
    reason: str = ""


class _Sample(NamedTuple):
    """Images by name (n,), their patients (n,), the share of evaluations in which each is correct
    (n,), and weights that resample patients (draws, n), None to compute them."""

    example: np.ndarray
    group: np.ndarray
    correct: np.ndarray
    weights: np.ndarray | None = None


class Evidence:
    """The groups of one data set.

    Attributes:
      groups: the runs.
      doubts: reasons why they can decide nothing, [] if they can.
      notes: to print below the table of conclusions.
    """

    def __init__(self, groups: Sequence[Group]):
        self.groups, self.notes = groups, []
        runs = [run for group in groups for run in group.runs]
        self.doubts: list[str] = []
        if any(run.generated for run in runs):
            self.doubts.append("generated images")
        self._units = {id(group): _units(group) for group in groups}
        units = [unit for of_group in self._units.values() for unit in of_group.values()]
        self.doubts += dict.fromkeys(doubt for unit in units for doubt in unit.doubts())

    def measure(self, contrast: Contrast, view: View) -> Result:
        """Returns the contrast over the runs that have both accuracies."""
        higher, lower = (self._samples(term, view) for term in (contrast.higher, contrast.lower))
        for found in (higher, lower):
            if isinstance(found, str):
                return Result(contrast.label, None, None, found)
        assert isinstance(lower, dict)
        if isinstance(higher, float):
            higher = {
                key: sample._replace(correct=np.full(len(sample.correct), higher))
                for key, sample in lower.items()
            }
        assert isinstance(higher, dict)
        common = [key for key in higher if key in lower]
        if not common:
            return Result(contrast.label, None, None, "no two runs of one seed and fold")
        if any(not np.array_equal(higher[k].example, lower[k].example) for k in common):
            return Result(contrast.label, None, None, "the runs have different test images")
        return _combine(contrast.label, [_difference(higher[k], lower[k]) for k in common])

    def _samples(self, term: Term | float, view: View) -> dict[str, _Sample] | float | str:
        """Returns the samples of each unit, or the reason why there are none."""
        if not isinstance(term, Term):
            return float(term)
        group = self._pick(term)
        if group is None:
            fields = "".join(f", {name}={value:g}" for name, value in term.fields)
            return f"{term.model}{fields} was not run"
        samples = {k: _sample(unit, term, view) for k, unit in self._units[id(group)].items()}
        found = {key: sample for key, sample in samples.items() if sample is not None}
        return found or f"{term.model}: {term.defense}, {term.what} was not run"

    def _pick(self, term: Term) -> Group | None:
        """Returns the network's group with the fields; without fields, the first at ε = 0.03."""
        matching = [group for group in self.groups if group.model == term.model]
        for name, value in term.fields:
            matching = [g for g in matching if flatten(g.runs[0].config).get(name) == value]
        if term.fields:
            if not any(_differ(self.groups, term.model, name) for name, _ in term.fields):
                return None
        elif len(matching) > 1:
            matching = [group for group in matching if group.runs[0].epsilon == 0.03] or matching
            if len(matching) > 1:
                note = (
                    f"Of several settings of {term.model} the first decides: {matching[0].label}."
                )
                self.notes += [] if note in self.notes else [note]
        return matching[0] if matching else None


def _differ(groups: Sequence[Group], model: str, name: str) -> bool:
    values = {flatten(g.runs[0].config).get(name) for g in groups if g.model == model}
    return len(values) > 1


def _units(group: Group) -> dict[str, RunRecords]:
    """Returns the pooled folds of each seed, and each run whose folds cannot be pooled."""
    pooled = {f"seed {one.seed}": one.run for one in pool(group) if one.run is not None}
    units = dict(pooled)
    for run in group.runs:
        seed, data = run.config.get("seed", 0), run.config["data"]
        if f"seed {seed}" not in pooled:
            units[f"seed {seed} fold {data.get('fold', 0)}"] = run
    return units


def _sample(run: RunRecords, term: Term, view: View) -> _Sample | None:
    """Returns how often each image is correct, None if that was not run."""
    if term.what.startswith(_CURVE):
        return _curve_sample(run, term.defense, float(term.what.removeprefix(_CURVE)))
    if term.defense not in run.defenses:
        return None
    if term.what == CLEAN:
        found = [run.clean(term.defense)]
    elif term.what == ATTACKED and view is View.WORST:
        found = [run.worst(term.defense)]
    else:
        oblivious = view is View.PAPER and term.defense in PURIFIED
        threat = "oblivious" if oblivious else "adaptive"
        names = [term.what]
        if term.what == ATTACKED:  # the paper's attacks, where they ran
            names = [name for name in run.attacks if name in PAPER_EVALUATIONS] or run.attacks
        found = [run.get(term.defense, threat, name) for name in names]
    correct = [outcome.predicted == run.label for outcome in found if outcome is not None]
    if not correct or len(correct) < len(found):
        return None
    return _Sample(run.example, run.group, np.mean(correct, axis=0), run.weights)


def _curve_sample(run: RunRecords, defense: str, epsilon: float) -> _Sample | None:
    """Returns which images of the curves are correct at an epsilon, None without curves."""
    curves = run.curves
    if curves is None:
        return None
    rows = (curves["defense"] == defense) & np.isclose(curves["epsilon"], epsilon)
    rows &= curves["num_steps"] == run.config["eval"]["num_steps"]
    rows &= curves["evaluation"] == "pgd"
    if not rows.any():
        return None
    order = np.argsort(curves["example"][rows])
    examples, groups = (curves[name][rows][order] for name in ("example", "group"))
    correct = (curves["predicted"] == curves["label"])[rows][order]
    return _Sample(examples, groups, correct.astype(float))


def _difference(higher: _Sample, lower: _Sample) -> tuple[float, Callable[[], Interval | None]]:
    """Returns the mean difference on the same images, and a function for its interval."""
    difference = higher.correct - lower.correct

    def interval() -> Interval | None:
        statistic = ratio_statistic(difference, np.ones(len(difference)), lower.group)
        return cluster_bootstrap(statistic, lower.group, weights=lower.weights)

    return float(difference.mean()), interval


def _combine(label: str, parts: Sequence[tuple[float, Callable[[], Interval | None]]]) -> Result:
    """Returns the mean over units; its interval is by patient for one unit, else Student's t."""
    values = np.array([value for value, _ in parts])
    if len(values) == 1:
        interval = parts[0][1]()
        reason = "" if interval else "one patient only: no interval"
        return Result(label, float(values[0]), interval, reason)
    width = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Result(label, mean, (mean - float(width), mean + float(width)))
