"""Several runs: grouped where they differ only by seed or fold, and the folds of a seed pooled."""

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from medadv_jax.config import FIELDS_WITHOUT_RESULT, flatten
from medadv_jax.evaluation.statistics import mean_sd
from medadv_jax.report.records import DEFENSES, PURIFIED, Outcome, RunRecords
from medadv_jax.report.tables import Spread

# Fields that runs of one group may differ by.
_NOT_COMPARED = {"seed", "data.fold", *FIELDS_WITHOUT_RESULT, "data.dir", "reuse"}


@dataclasses.dataclass(frozen=True)
class Series:
    """A defence, attacked by one kind of attacker."""

    defense: str
    threat: str

    @property
    def label(self) -> str:
        """The defence; for a purified one also the kind of attacker."""
        return f"{self.defense}, {self.threat}" if self.defense in PURIFIED else self.defense


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one network on one data set with the same config but for seed and fold.

    Attributes:
      label: the network, and the config fields that differ from other groups of this network.
      runs: at least one.
    """

    label: str
    runs: tuple[RunRecords, ...]

    @property
    def model(self) -> str:
        """The network's name."""
        return self.runs[0].model

    @property
    def attacks(self) -> list[str]:
        """Attacks, in the order of the records."""
        return list(dict.fromkeys(a for run in self.runs for a in run.attacks))

    def values(self, series: Series, evaluation: str, metric: str) -> list[float]:
        """Returns a metric of each run that has it; `evaluation` may be "worst"."""
        found = []
        for run in self.runs:
            metrics = run.summary(series.defense, series.threat, evaluation)
            value = metrics and getattr(metrics, metric)
            found += [] if value is None else [value]
        return found

    def spread(self, series: Series, evaluation: str, metric: str) -> Spread | None:
        """Returns mean and SD over the runs, None if no run has a value."""
        values = self.values(series, evaluation, metric)
        return Spread(*mean_sd(values)) if values else None


def all_series(runs: Sequence[RunRecords]) -> list[Series]:
    """Returns every defence of the runs; purified ones with an oblivious attacker, too."""
    names = {d for run in runs for d in run.defenses}
    ordered = [d for d in DEFENSES if d in names] + sorted(names.difference(DEFENSES))
    return [
        Series(d, threat)
        for d in ordered
        for threat in (("oblivious", "adaptive") if d in PURIFIED else ("adaptive",))
    ]


def without_copies(runs: Sequence[RunRecords]) -> tuple[list[RunRecords], list[str]]:
    """Returns the runs without copies of an earlier one, and a sentence about each copy.

    A copy has the same config, whatever its seed, and the same predictions to the last bit: it is
    no independent repetition.
    """
    first: dict[tuple, RunRecords] = {}
    copies = []
    for run in runs:
        original = first.setdefault((*_compared_fields(run).items(), _content(run)), run)
        if original is not run:
            copies.append(f"{run.path} is a copy of {original.path}: counted once.")
    return list(first.values()), copies


def _content(run: RunRecords) -> str:
    """Returns a digest of the test examples and of all predictions."""
    digest = hashlib.sha256("\0".join(map(str, [*run.example, *run.label])).encode())
    for key in sorted(run.outcomes):
        outcome = run.outcomes[key]
        digest.update(f"{key}".encode() + outcome.score.tobytes() + outcome.predicted.tobytes())
    return digest.hexdigest()


def make_groups(runs: Sequence[RunRecords]) -> list[Group]:
    """Returns the runs of one data set in groups, in order of first appearance."""
    members: dict[tuple, list[RunRecords]] = {}
    for run in runs:
        members.setdefault(tuple(_compared_fields(run).items()), []).append(run)
    configs = [dict(key) for key in members]
    labels = [_label(config, configs) for config in configs]
    return [
        Group(label, tuple(inside)) for label, inside in zip(labels, members.values(), strict=True)
    ]


def _compared_fields(run: RunRecords) -> dict[str, str]:
    fields = sorted(flatten(run.config).items())
    return {name: str(value) for name, value in fields if name not in _NOT_COMPARED}


def _label(config: dict[str, str], configs: Sequence[dict[str, str]]) -> str:
    """Returns the network, and the fields by which its configs differ."""
    model = config["model.name"]
    same_model = [other for other in configs if other["model.name"] == model]
    names = sorted({name for other in configs for name in other})
    differing = [n for n in names if any(o.get(n) != config.get(n) for o in same_model)]
    extra = ", ".join(f"{name}={config.get(name)}" for name in differing)
    return f"{model} ({extra})" if extra else model


@dataclasses.dataclass(frozen=True)
class Pooled:
    """The pooled folds of one seed.

    Attributes:
      seed: of the runs.
      run: the folds as one run with all their test images; None if they cannot be pooled.
      reason: why they cannot be pooled; "" if they can.
    """

    seed: int
    run: RunRecords | None
    reason: str = ""


def pool(group: Group) -> list[Pooled]:
    """Returns the pooled folds of each seed; [] if the runs have no folds."""
    by_seed: dict[int, list[RunRecords]] = {}
    for run in group.runs:
        if run.config["data"].get("num_folds"):
            by_seed.setdefault(int(run.config["seed"]), []).append(run)
    return [_pool(seed, runs, group.label) for seed, runs in by_seed.items()]


def _pool(seed: int, runs: list[RunRecords], label: str) -> Pooled:
    count = int(runs[0].config["data"]["num_folds"])
    runs = sorted(runs, key=lambda run: run.config["data"]["fold"])
    reason = _why_not_pooled(runs, count)
    if reason:
        return Pooled(seed, None, reason)
    return Pooled(seed, _concatenate(runs, f"{label}, seed {seed}, {count} folds"))


def _why_not_pooled(runs: Sequence[RunRecords], count: int) -> str:
    """Returns "" if the runs are `count` folds with disjoint test images and patients."""
    folds = [int(run.config["data"]["fold"]) for run in runs]
    missing = sorted(set(range(count)) - set(folds))
    if missing:
        return f"fold {', '.join(map(str, missing))} of {count} is missing"
    if len(folds) > count:
        return "a fold is there twice"
    for column, what in (("example", "images"), ("group", "patients")):
        parts = [np.unique(getattr(run, column)) for run in runs]
        twice = sum(map(len, parts)) - len(np.unique(np.concatenate(parts)))
        if twice:
            return f"{twice} {what} are in two test folds"
    if any(run.outcomes.keys() != runs[0].outcomes.keys() for run in runs):
        return "the folds have different evaluations"
    return ""


def _concatenate(runs: Sequence[RunRecords], name: str) -> RunRecords:
    """Returns one run with the test images of all."""
    columns = ("example", "label", "group", "magnification", "subtype")
    joined: dict[str, Any] = {c: np.concatenate([getattr(run, c) for run in runs]) for c in columns}
    outcomes = {
        key: Outcome(
            np.concatenate([run.outcomes[key].score for run in runs]),
            np.concatenate([run.outcomes[key].predicted for run in runs]),
        )
        for key in runs[0].outcomes
    }
    return RunRecords(
        path=runs[0].path.with_name(name.replace("/", "_")),
        config=copy.deepcopy(runs[0].config),
        about=runs[0].about,
        **joined,
        outcomes=outcomes,
        training=[], curves=None, pictures=None, detection=[], checks=None,
        splits={"classes": runs[0].class_names},
    )  # fmt: skip
