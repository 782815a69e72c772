"""Several runs: those that differ only by seed or fold are one, with a mean and a deviation."""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from medadv_jax.config import FIELDS_WITHOUT_RESULT, flatten
from medadv_jax.evaluation.statistics import mean_sd
from medadv_jax.report.comparison import compare, pairwise_table
from medadv_jax.report.page import Section
from medadv_jax.report.records import DEFENSES, PURIFIED, Outcome, RunRecords
from medadv_jax.report.run_tables import headline_table, results_table
from medadv_jax.report.tables import Spread, Table

_REPEATS = {"seed", "data.fold"}  # fields by which a run repeats another
_LEFT_OUT = {*_REPEATS, *FIELDS_WITHOUT_RESULT, "data.dir", "reuse"}  # of a group's identity


@dataclasses.dataclass(frozen=True)
class Series:
    """A defence as one kind of attacker sees it."""

    defense: str
    threat: str

    @property
    def label(self) -> str:
        """The defence, and the attacker where there is more than one kind."""
        return f"{self.defense}, {self.threat}" if self.defense in PURIFIED else self.defense


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one network on one data set under one config.

    Attributes:
      label: the network, and the fields by which the config differs from other groups.
      runs: they differ by seed or fold.
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
        """Returns mean and SD over the runs, None without a value."""
        values = self.values(series, evaluation, metric)
        return Spread(*mean_sd(values)) if values else None


def all_series(runs: Sequence[RunRecords]) -> list[Series]:
    """Returns every defence of the runs; a purified one twice, oblivious beside adaptive."""
    names = {d for run in runs for d in run.defenses}
    ordered = [d for d in DEFENSES if d in names] + sorted(names.difference(DEFENSES))
    return [
        Series(d, threat)
        for d in ordered
        for threat in (("oblivious", "adaptive") if d in PURIFIED else ("adaptive",))
    ]


def make_groups(runs: Sequence[RunRecords]) -> list[Group]:
    """Returns the runs of one data set in groups, in the order in which they come."""
    members: dict[tuple, list[RunRecords]] = {}
    for run in runs:
        members.setdefault(tuple(_identity(run).items()), []).append(run)
    identities = [dict(identity) for identity in members]
    names = {name for identity in identities for name in identity}
    groups = []
    for identity, inside in zip(identities, members.values(), strict=True):
        model = identity["model.name"]
        alike = [other for other in identities if other["model.name"] == model]
        differing = sorted(
            n for n in names if any(o.get(n) != identity.get(n) for o in alike)
        )  # of one network, what tells this group from the others
        extra = ", ".join(f"{name}={identity.get(name)}" for name in differing)
        groups.append(Group(f"{model} ({extra})" if extra else str(model), tuple(inside)))
    return groups


def _identity(run: RunRecords) -> dict[str, str]:
    return {k: str(v) for k, v in sorted(flatten(run.config).items()) if k not in _LEFT_OUT}


_NOTE = (
    "The folds' predictions on their own test images, put together: each image once, by the network"
    " of the fold that tests it. Intervals resample patients over all folds, and take the networks"
    " as they are. An AUC of several networks takes their scores for comparable."
)


@dataclasses.dataclass(frozen=True)
class Pooled:
    """The folds of one seed.

    Attributes:
      seed: of the runs.
      run: all of them as one; None where that cannot be.
      why: it cannot be; "" if it can.
    """

    seed: int
    run: RunRecords | None
    why: str = ""


def pool(group: Group) -> list[Pooled]:
    """Returns the folds of each seed put together; none if the runs are no folds."""
    by_seed: dict[int, list[RunRecords]] = {}
    for run in group.runs:
        if run.config["data"].get("num_folds"):
            by_seed.setdefault(int(run.config["seed"]), []).append(run)
    return [_pool(seed, runs, group.label) for seed, runs in by_seed.items()]


def _pool(seed: int, runs: list[RunRecords], label: str) -> Pooled:
    count = int(runs[0].config["data"]["num_folds"])
    runs = sorted(runs, key=lambda run: run.config["data"]["fold"])
    folds = [int(run.config["data"]["fold"]) for run in runs]
    missing = sorted(set(range(count)) - set(folds))
    if missing:
        names = ", ".join(map(str, missing))
        return Pooled(seed, None, f"fold {names} of {count} is missing")
    if len(folds) > count:
        return Pooled(seed, None, "a fold is there twice")
    for column, what in (("example", "images"), ("group", "patients")):
        parts = [np.unique(getattr(run, column)) for run in runs]
        twice = sum(map(len, parts)) - len(np.unique(np.concatenate(parts)))
        if twice:
            return Pooled(seed, None, f"{twice} {what} are in two test folds")
    if any(run.outcomes.keys() != runs[0].outcomes.keys() for run in runs):
        return Pooled(seed, None, "the folds have different evaluations")
    return Pooled(seed, _together(runs, f"{label}, seed {seed}, {count} folds"))


def _together(runs: Sequence[RunRecords], name: str) -> RunRecords:
    """Returns one run with the test images of all."""
    columns = ("example", "label", "group", "magnification", "subtype")
    joined = {c: np.concatenate([getattr(run, c) for run in runs]) for c in columns}
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
        training=[], curves=None, pictures=None, detection=[], checks=None, splits={},
    )  # fmt: skip


def folds_sections(dataset: str, groups: Sequence[Group]) -> list[Section]:
    """Returns a section for each group of folds: its headline, results and comparisons."""
    sections = []
    for number, group in enumerate(groups):
        parts: list[Table | str] = []
        for pooled in pool(group):
            if pooled.run is None:
                parts.append(f"Seed {pooled.seed}: not put together: {pooled.why}.")
                continue
            run = pooled.run
            tables = [headline_table(run), results_table(run)]
            comparisons = compare(run)
            tables += [pairwise_table(comparisons)] if comparisons else []
            suffix = f"folds_{dataset}_{number}_seed{pooled.seed}"
            parts += [
                dataclasses.replace(
                    table,
                    name=f"{table.name}_{suffix}",
                    title=f"{table.title} (seed {pooled.seed})",
                    notes=(*table.notes, _NOTE),
                )
                for table in tables
            ]
        if parts:
            sections.append(Section(f"All folds together: {group.label} on {dataset}", parts))
    return sections
