"""Several runs: those that differ only by seed or fold are one, with a mean and a deviation."""

import dataclasses
from collections.abc import Sequence

from medadv_jax.evaluation.statistics import mean_sd
from medadv_jax.report.records import DEFENSES, PURIFIED, RunRecords
from medadv_jax.report.run_tables import flat
from medadv_jax.report.tables import Spread

_REPEATS = {"seed", "data.fold"}  # fields by which a run repeats another
_NO_RESULT = {
    "data.cache_dir",
    "data.dir",
    "reuse",
    "train.checkpoint_minutes",
}  # fields that change no result


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
    left_out = _REPEATS | _NO_RESULT
    return {k: str(v) for k, v in flat(run.config).items() if k not in left_out}
