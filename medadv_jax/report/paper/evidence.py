"""Differences of accuracies between classifiers of several runs, on the same images."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # whose `stats` is loaded when it is first asked: half a second

from medadv_jax.config import flatten
from medadv_jax.evaluation.statistics import Interval, cluster_bootstrap, ratio_statistic
from medadv_jax.report.aggregate import Group, pool
from medadv_jax.report.records import PURIFIED, RunRecords

CLEAN, ATTACKED = "clean", "attacked"
_CURVE = "curve "  # and a radius: on the images of the curves, at that radius


class View(enum.Enum):
    """How attacks are counted."""

    PAPER = "mean over the attacks, the purifier unknown"
    WORST = "for each image the worst, everything known"


@dataclasses.dataclass(frozen=True)
class Term:
    """An accuracy.

    Attributes:
      model: the network.
      defense: its defence.
      what: CLEAN, ATTACKED, an attack's name or "curve RADIUS".
      fields: (field, value) of the config, where groups of one network differ by it.
    """

    model: str
    defense: str
    what: str
    fields: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Contrast:
    """`higher` less `lower`; the first may be a number."""

    label: str
    higher: Term | float
    lower: Term


@dataclasses.dataclass(frozen=True)
class Measured:
    """A contrast's value and 95 % interval; None, and why, where there is none."""

    label: str
    value: float | None
    interval: Interval | None
    why: str = ""


class _Sample(NamedTuple):
    """Share of right answers of each image (n,), with its name and patient; resamples of patients
    (draws, n), where they are kept."""

    example: np.ndarray
    group: np.ndarray
    right: np.ndarray
    weights: np.ndarray | None = None


class Evidence:
    """The groups of one data set.

    Attributes:
      groups: as in the tables.
      doubts: why they decide nothing, [] if they may.
      notes: for people.
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

    def measure(self, contrast: Contrast, view: View) -> Measured:
        """Returns the contrast over the runs that have both sides."""
        higher, lower = (self._samples(term, view) for term in (contrast.higher, contrast.lower))
        for found in (higher, lower):
            if isinstance(found, str):
                return Measured(contrast.label, None, None, found)
        assert isinstance(lower, dict)
        if isinstance(higher, float):
            fixed = {k: one._replace(right=np.full(len(one.right), higher))
                     for k, one in lower.items()}  # fmt: skip
            return _combine(contrast.label, [_difference(fixed[k], lower[k]) for k in lower])
        assert isinstance(higher, dict)
        common = [key for key in higher if key in lower]
        if not common:
            return Measured(contrast.label, None, None, "no two runs of one seed and fold")
        if any(not np.array_equal(higher[k].example, lower[k].example) for k in common):
            return Measured(contrast.label, None, None, "the runs have different test images")
        return _combine(contrast.label, [_difference(higher[k], lower[k]) for k in common])

    def _samples(self, term: Term | float, view: View) -> dict[str, _Sample] | float | str:
        """Returns the samples of each unit, or why there are none."""
        if not isinstance(term, Term):
            return float(term)
        group = self._pick(term)
        if group is None:
            fields = "".join(f", {name}={value:g}" for name, value in term.fields)
            return f"{term.model}{fields} was not run"
        found = {}
        for key, unit in self._units[id(group)].items():
            sample = _sample(unit, term, view)
            if sample is not None:
                found[key] = sample
        return found or f"{term.model}: {term.defense}, {term.what} was not run"

    def _pick(self, term: Term) -> Group | None:
        """Returns the network's group with the fields; else the first of those at ε = 0.03."""
        alike = [group for group in self.groups if group.model == term.model]
        for name, value in term.fields:
            alike = [group for group in alike if flatten(group.runs[0].config).get(name) == value]
        if term.fields:
            varied = {name for name, _ in term.fields}
            if not any(_differ(self.groups, term.model, name) for name in varied):
                return None
        elif len(alike) > 1:
            alike = [group for group in alike if group.runs[0].epsilon == 0.03] or alike
            if len(alike) > 1:
                note = f"Of several settings of {term.model} the first decides: {alike[0].label}."
                self.notes += [] if note in self.notes else [note]
        return alike[0] if alike else None


def _differ(groups: Sequence[Group], model: str, name: str) -> bool:
    values = {flatten(g.runs[0].config).get(name) for g in groups if g.model == model}
    return len(values) > 1


def _units(group: Group) -> dict[str, RunRecords]:
    """Returns what is measured once: all folds of a seed together, else each run."""
    pooled = {f"seed {one.seed}": one.run for one in pool(group) if one.run is not None}
    units = dict(pooled)
    for run in group.runs:
        seed, data = run.config.get("seed", 0), run.config["data"]
        if f"seed {seed}" not in pooled:
            units[f"seed {seed} fold {data.get('fold', 0)}"] = run
    return units


def _sample(run: RunRecords, term: Term, view: View) -> _Sample | None:
    """Returns how often each image is right, None if that was not run."""
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
        names = run.attacks if term.what == ATTACKED else [term.what]
        found = [run.get(term.defense, threat, name) for name in names]
    rights = [outcome.predicted == run.label for outcome in found if outcome is not None]
    if not rights or len(rights) < len(found):
        return None
    return _Sample(run.example, run.group, np.mean(rights, axis=0), run.weights)


def _curve_sample(run: RunRecords, defense: str, epsilon: float) -> _Sample | None:
    """Returns the answers on the images of the curves at a radius."""
    curves = run.curves
    if curves is None:
        return None
    rows = (curves["defense"] == defense) & np.isclose(curves["epsilon"], epsilon)
    rows &= curves["num_steps"] == run.config["eval"]["num_steps"]
    if not rows.any():
        return None
    order = np.argsort(curves["example"][rows])
    examples, groups = (curves[name][rows][order] for name in ("example", "group"))
    right = (curves["predicted"] == curves["label"])[rows][order]
    return _Sample(examples, groups, right.astype(float))


def _difference(higher: _Sample, lower: _Sample) -> tuple[float, Callable[[], Interval | None]]:
    """Returns the mean difference on the same images, and how to get its interval by patient."""
    difference = higher.right - lower.right

    def interval() -> Interval | None:
        statistic = ratio_statistic(difference, np.ones(len(difference)), lower.group)
        return cluster_bootstrap(statistic, lower.group, weights=lower.weights)

    return float(difference.mean()), interval


def _combine(label: str, parts: Sequence[tuple[float, Callable[[], Interval | None]]]) -> Measured:
    """Returns the mean over units; its interval is by patient for one, Student's t for several."""
    values = np.array([value for value, _ in parts])
    if len(values) == 1:
        interval = parts[0][1]()
        why = "" if interval else "one patient only: no interval"
        return Measured(label, float(values[0]), interval, why)
    width = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Measured(label, mean, (mean - float(width), mean + float(width)))
