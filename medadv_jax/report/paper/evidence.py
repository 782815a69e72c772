"""Differences of metrics and costs between classifiers of several runs, on the same images."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # loads scipy.stats lazily; that takes 0.5 s

from medadv_jax.config import flatten
from medadv_jax.evaluation.intervals import metric_statistic
from medadv_jax.evaluation.metrics import probability_of
from medadv_jax.evaluation.statistics import (
    Interval,
    Statistic,
    cluster_bootstrap,
    ratio_statistic,
)
from medadv_jax.report.aggregate import Group, pool
from medadv_jax.report.paper.tables import PAPER_EVALUATIONS
from medadv_jax.report.records import PURIFIED, Outcome, RunRecords

CLEAN, ATTACKED, COST = "clean", "attacked", "cost"
_CURVE = "curve "  # followed by an epsilon: accuracy in curves.parquet at that epsilon


class View(enum.Enum):
    """The attacker, and how accuracies under several attacks are combined."""

    PAPER = "mean over the attacks, oblivious of the purifier"
    WORST = "worst attack on each image, adaptive"


@dataclasses.dataclass(frozen=True)
class Term:
    """Names a number of a classifier.

    Attributes:
      model: the network.
      defense: its defence.
      what: CLEAN, ATTACKED, an attack's name, "curve EPSILON", or COST.
      fields: (field, value) of the config, where groups of one network differ by it.
      metric: accuracy, precision, recall, specificity, f1 or auc; "confidence": the mean
        probability of the true class; "success rate" of attacks; "deviation": the standard
        deviation of the accuracy over clean images and all attacks; of a COST "training seconds"
        or "GFLOPs".
    """

    model: str
    defense: str
    what: str
    fields: tuple[tuple[str, float], ...] = ()
    metric: str = "accuracy"


Side = Term | float | tuple[Term, ...]


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The number `higher` minus the number `lower`; several terms of a side are added up."""

    label: str
    higher: Side
    lower: Side


@dataclasses.dataclass(frozen=True)
class Result:
    """A contrast's value and 95 % interval; None, with the reason, where there is none."""

    label: str
    value: float | None
    interval: Interval | None
    reason: str = ""


class _Sample(NamedTuple):
    """Images by name (n,), their patients (n,), a number as a function of weights (draws, n) ->
    (draws,), and weights that resample patients (draws, n), None to compute them."""

    example: np.ndarray
    group: np.ndarray
    statistic: Statistic
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
        """Returns the contrast over the runs that have all its numbers."""
        signed = [
            (sign, part)
            for sign, side in ((1.0, contrast.higher), (-1.0, contrast.lower))
            for part in (side if isinstance(side, tuple) else (side,))
        ]
        limit = sum(sign * part for sign, part in signed if not isinstance(part, Term))
        found: list[tuple[float, dict[str, _Sample]]] = []
        for sign, part in signed:
            if isinstance(part, Term):
                samples = self._samples(part, view)
                if isinstance(samples, str):
                    return Result(contrast.label, None, None, samples)
                found.append((sign, samples))
        common = [key for key in found[0][1] if all(key in samples for _, samples in found)]
        if not common:
            return Result(contrast.label, None, None, "no two runs of one seed and fold")
        first = found[0][1]
        if any(
            not np.array_equal(s[k].example, first[k].example) for _, s in found for k in common
        ):
            return Result(contrast.label, None, None, "the runs have different test images")
        parts = [_difference(limit, [(sign, s[k]) for sign, s in found]) for k in common]
        return _combine(contrast.label, parts)

    def _samples(self, term: Term, view: View) -> dict[str, _Sample] | str:
        """Returns the samples of each unit, or the reason why there are none."""
        group = self._pick(term)
        if group is None:
            fields = "".join(f", {name}={value:g}" for name, value in term.fields)
            return f"{term.model}{fields} was not run"
        samples = {k: _sample(unit, term, view) for k, unit in self._units[id(group)].items()}
        found = {key: sample for key, sample in samples.items() if sample is not None}
        what = term.metric if term.what == COST else term.what
        missing = "has no record" if term.what == COST else "was not run"
        return found or f"{term.model}: {term.defense}, {what} {missing}"

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
    """Returns a number of a run, None if it was not measured."""
    if term.what == COST:
        return _cost_sample(run, term)
    if term.what.startswith(_CURVE):
        return _curve_sample(run, term.defense, float(term.what.removeprefix(_CURVE)))
    if term.defense not in run.defenses:
        return None
    if term.what == CLEAN:
        found = [run.clean(term.defense)]
    elif term.what == ATTACKED and view is View.WORST and term.metric != "deviation":
        found = [run.worst(term.defense)]
    else:
        oblivious = view is View.PAPER and term.defense in PURIFIED
        threat = "oblivious" if oblivious else "adaptive"
        names = [term.what]
        if term.what == ATTACKED:  # the paper's attacks, where they ran
            names = [name for name in run.attacks if name in PAPER_EVALUATIONS] or run.attacks
        found = [run.get(term.defense, threat, name) for name in names]
    outcomes = [outcome for outcome in found if outcome is not None]
    if not outcomes or len(outcomes) < len(found):
        return None
    spread = term.metric == "deviation"
    if spread:
        outcomes = [run.clean(term.defense), *outcomes]
    metric = "accuracy" if spread else term.metric
    every = [_statistic(run, term.defense, outcome, metric) for outcome in outcomes]

    def statistic(weights: np.ndarray) -> np.ndarray:
        values = np.stack([each(weights) for each in every])
        return values.std(axis=0, ddof=1) if spread else values.mean(axis=0)

    return _Sample(run.example, run.group, statistic, run.weights)


def _statistic(run: RunRecords, defense: str, outcome: Outcome, metric: str) -> Statistic:
    """Returns weights (draws, n) -> a metric of one evaluation."""
    correct = outcome.predicted == run.label
    if metric == "confidence":
        of_truth = probability_of(run.label, outcome.score)
        return ratio_statistic(of_truth, np.ones(len(correct)), run.group)
    if metric == "success rate":
        before = run.clean(defense).predicted == run.label
        return ratio_statistic(before & ~correct, before, run.group)
    return metric_statistic(metric, run.label, outcome.score, outcome.predicted, run.group)


def _cost_sample(run: RunRecords, term: Term) -> _Sample | None:
    """Returns what training or a prediction cost, the same for all weights."""
    if term.metric == "GFLOPs":
        cost, unit = run.prediction_cost.get(term.defense, {}).get("flops"), 1e-9
    else:
        cost, unit = run.cost.get(term.defense, {}).get("seconds"), 1.0
    if cost is None:
        return None
    return _Sample(run.example, run.group, lambda weights: np.full(len(weights), unit * cost))


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
    return _Sample(examples, groups, ratio_statistic(correct, np.ones(len(correct)), groups))


def _difference(
    limit: float, terms: Sequence[tuple[float, _Sample]]
) -> tuple[float, Callable[[], Interval | None]]:
    """Returns limit + Σ sign · number on the same images, and a function for its interval."""
    sample = terms[0][1]

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = np.sum([sign * each.statistic(weights) for sign, each in terms], axis=0)
        return np.round(limit + total, 12)  # equal numbers differ by 0, not by their rounding

    def interval() -> Interval | None:
        return cluster_bootstrap(statistic, sample.group, weights=sample.weights)

    with np.errstate(invalid="ignore", divide="ignore"):
        return float(statistic(np.ones((1, len(sample.group))))[0]), interval


def _combine(label: str, parts: Sequence[tuple[float, Callable[[], Interval | None]]]) -> Result:
    """Returns the mean over units; its interval is by patient for one unit, else Student's t."""
    values = np.array([value for value, _ in parts])
    if not np.isfinite(values).all():
        return Result(label, None, None, "it has no value: nothing is called positive")
    if len(values) == 1:
        interval = parts[0][1]()
        reason = "" if interval else "one patient only: no interval"
        return Result(label, float(values[0]), interval, reason)
    width = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Result(label, mean, (mean - float(width), mean + float(width)))
