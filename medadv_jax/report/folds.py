"""K folds by patient: every image is answered once, by a network that never saw its patient."""

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from medadv_jax.report.aggregate import Group
from medadv_jax.report.comparison import compare, pairwise_table
from medadv_jax.report.page import Section
from medadv_jax.report.records import Outcome, RunRecords
from medadv_jax.report.run_tables import headline_table, results_table
from medadv_jax.report.tables import Table

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
