"""Everything a report reads: the files of a run directory, checked and in one order of examples."""

import csv
import dataclasses
import functools
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medadv_jax.config import flatten, read_saved_config
from medadv_jax.data.splits import saved_class_names
from medadv_jax.errors import UserError
from medadv_jax.evaluation.checks.sample_size import sample_size_warnings
from medadv_jax.evaluation.intervals import metric_intervals
from medadv_jax.evaluation.metrics import Metrics, summarize, worst_prediction
from medadv_jax.evaluation.predictions import (
    KEYS,
    Columns,
    Key,
    correct_by,
    group_rows,
    read_scores,
    read_table,
    to_columns,
)
from medadv_jax.evaluation.statistics import Interval, cluster_weights, proportion_interval
from medadv_jax.files import read_json, read_metrics, read_record

DEFENSES = ("base", "adversarial", "autoencoder", "hybrid")  # the order of every table
PURIFIED = ("autoencoder", "hybrid")  # have an oblivious attacker, who does not know the purifier
THREATS = ("transfer", "oblivious", "adaptive")
PHANTOMS = "phantoms"
_NEEDED = (
    "defense", "threat_model", "evaluation", "epsilon", "example", "group", "magnification",
    "label", "predicted",
)  # fmt: skip
_CONFIG_NEEDED = {
    "seed": int, "data.name": str, "data.num_folds": int, "data.fold": int, "model.name": str,
    "attack.epsilon": int | float, "eval.num_steps": int,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Predictions of one classifier in one evaluation, in the order of the run's examples.

    Attributes:
      score: (n,) float, probability of class 1 of two; of K > 2 classes (n, K), of each.
      predicted: (n,) int.
    """

    score: np.ndarray
    predicted: np.ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy on a subset along one axis: epsilon or steps.

    Attributes:
      defense: whose.
      x: (k,) ascending.
      accuracy, low, high: (k,) share correct, and its interval; NaN where there is none.
      n: examples at each point.
      fixed: the value of the other axis.
    """

    defense: str
    x: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    fixed: float


@dataclasses.dataclass
class RunRecords:
    """One run. Optional files that are missing are None or empty.

    Attributes:
      path: the run directory.
      config: the config, nested.
      about: device, versions, git_commit.
      label, group, magnification, subtype, example: (n,) of the test examples.
      outcomes: (defence, threat model, evaluation, epsilon) -> predictions.
      training: lines of metrics.jsonl.
      curves: columns of curves.parquet.
      pictures: arrays of pictures.npz, the example images.
      detection: rows of detection.csv.
      checks: the content of self_checks.json.
      splits: the content of splits.json.
    """

    path: Path
    config: dict[str, Any]
    about: dict[str, Any]
    example: np.ndarray
    label: np.ndarray
    group: np.ndarray
    magnification: np.ndarray
    subtype: np.ndarray
    outcomes: dict[Key, Outcome]
    training: list[dict[str, Any]]
    curves: Columns | None
    pictures: dict[str, np.ndarray] | None
    detection: list[dict[str, str]]
    checks: dict[str, Any] | None
    splits: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.path.resolve().name

    @property
    def dataset(self) -> str:
        """The data set's name; of generated images with their kind, as they are other images, and
        with the number of classes if there are more than two, as that is another task."""
        data, many = self.config["data"], len(self.class_names)
        drawn = data["name"] == PHANTOMS and "phantom_kind" in data
        name = f"{PHANTOMS}_{data['phantom_kind']}" if drawn else data["name"]
        return name if many == 2 else f"{name}_{many}_classes"

    @property
    def subgroups(self) -> dict[str, np.ndarray]:
        """What else is known of the test examples: name -> (n,); 0 and "" are unknown."""
        known = {"magnification": self.magnification, "subtype": self.subtype}
        for name, values in self.splits.get("attributes", {}).items():
            known[name] = np.array([values.get(id_, "") for id_ in self.example.tolist()])
        return known

    @property
    def split(self) -> str:
        """What the split is, as "patient"; as splits.json says, in earlier versions the config."""
        return self.splits.get("done") or self.config["data"].get("split", "?")

    @property
    def patients_unknown(self) -> bool:
        """Returns whether the names of the images do not tell the patients."""
        return self.split.endswith("patients unknown")

    def count_patients(self, of: np.ndarray | slice = slice(None)) -> int | str:
        """Returns how many patients (groups) these test images have, "unknown" if nobody knows."""
        return "unknown" if self.patients_unknown else len(np.unique(self.group[of]))

    @property
    def generated(self) -> bool:
        """Returns whether the images are generated."""
        return self.config["data"]["name"] == PHANTOMS

    @property
    def model(self) -> str:
        """The network's name."""
        return self.config["model"]["name"]

    @property
    def epsilon(self) -> float:
        """The radius of the headline."""
        return float(self.config["attack"]["epsilon"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of label 0, 1, …"""
        return saved_class_names(self.splits, self.config["data"]["name"])

    @property
    def defenses(self) -> list[str]:
        """Known ones in the order of every table, then others."""
        found = {key[0] for key in self.outcomes}
        return [d for d in DEFENSES if d in found] + sorted(found.difference(DEFENSES))

    @functools.cached_property
    def attacks(self) -> list[str]:
        """Attacks of the headline, in the order of the records."""
        names = (k[2] for k in self.outcomes if k[2] != "clean" and k[3] == self.epsilon)
        return list(dict.fromkeys(names))

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """Resamples of whole groups; see `statistics.cluster_weights`."""
        return cluster_weights(self.group)

    @property
    def clustered(self) -> bool:
        """True if a patient has several test images."""
        return len(np.unique(self.group)) < len(self.group)

    def clean(self, defense: str) -> Outcome:
        """Returns the predictions on the clean images."""
        return self.outcomes[defense, "none", "clean", 0.0]

    def get(self, defense: str, threat: str, evaluation: str) -> Outcome | None:
        """Returns the predictions at the headline's epsilon, None where there are none.

        Without a purifier an oblivious attack is the adaptive one. With one, transfer and
        oblivious are withheld where the adaptive partner is missing: they would flatter.
        """
        if evaluation == "clean":
            return self.clean(defense)
        if (defense, "adaptive", evaluation, self.epsilon) not in self.outcomes:
            return None
        return self.outcomes.get((defense, threat, evaluation, self.epsilon))

    def withheld(self) -> list[str]:
        """Returns 'defence attack' of what has no adaptive partner and is therefore not shown."""
        found = {(k[0], k[2]) for k in self.outcomes if k[2] != "clean" and k[3] == self.epsilon}
        return [f"{d} {e}" for d, e in sorted(found) if self.get(d, "adaptive", e) is None]

    def worst(self, defense: str, threats: tuple[str, ...] = ("adaptive",)) -> Outcome | None:
        """Returns, for each example, the prediction under the attack that harms most.

        The attacker may also leave an image unchanged. None if there is no attack.
        """
        found = [self.get(defense, t, e) for t in threats for e in self.attacks]
        attacked = [outcome for outcome in found if outcome is not None]
        if not attacked:
            return None
        every = [self.clean(defense), *attacked]
        scores, predicted = (
            np.stack([getattr(o, x) for o in every]) for x in ("score", "predicted")
        )
        return Outcome(*worst_prediction(self.label, scores, predicted))

    def metrics(self, defense: str, outcome: Outcome, attacked: bool) -> Metrics:
        """Returns what results.csv would say of an outcome."""
        before = self.clean(defense).predicted if attacked else None
        return summarize(self.label, outcome.score, outcome.predicted, before)

    def summary(self, defense: str, threat: str, evaluation: str) -> Metrics | None:
        """Returns the metrics of an evaluation, None where it was not run; kept once computed.

        `evaluation` may be "worst": for each image the attack that harms most.
        """
        key = (defense, threat, evaluation)
        if key not in self._summaries:
            found = None
            if defense in self.defenses:
                worst = evaluation == "worst"
                found = self.worst(defense, (threat,)) if worst else self.get(*key)
            attacked = evaluation != "clean"
            self._summaries[key] = found and self.metrics(defense, found, attacked)
        return self._summaries[key]

    @functools.cached_property
    def _summaries(self) -> dict[tuple[str, str, str], Metrics | None]:
        return {}

    def intervals(
        self, defense: str, outcome: Outcome, attacked: bool
    ) -> dict[str, Interval | None]:
        """Returns the 95 % intervals of `metrics`, by patient where patients repeat."""
        before = self.clean(defense).predicted if attacked else None
        return metric_intervals(
            self.label, outcome.score, outcome.predicted, self.group, before, self.weights
        )

    def doubts(self) -> list[str]:
        """Returns why the numbers may mean little, whatever the self-checks say."""
        return sample_size_warnings(self.label, self.group, self.class_names)

    def curves_along(self, axis: str) -> list[Curve]:
        """Returns a curve for each defence along "epsilon" or "num_steps".

        The epsilon axis has PGD of the evaluation's number of steps, and what the run attacked by
        other algorithms too: an image counts where it is correct under all. The steps axis has PGD
        at the headline's epsilon. An axis of fewer than two points is left out.
        """
        if self.curves is None:
            return []
        steps = float(self.config["eval"]["num_steps"])
        other, fixed = ("num_steps", steps) if axis == "epsilon" else ("epsilon", self.epsilon)
        names = [d for d in self.defenses if (self.curves["defense"] == d).any()]
        return [c for d in names if len((c := self._curve(d, axis, other, fixed)).x) > 1]

    def _curve(self, defense: str, axis: str, other: str, fixed: float) -> Curve:
        columns = self.curves
        assert columns is not None
        is_pgd = columns["evaluation"] == "pgd"
        rows = (columns["defense"] == defense) & is_pgd & np.isclose(columns[other], fixed)
        if axis == "epsilon":
            rows |= (columns["defense"] == defense) & ~is_pgd
        names = (axis, "example", "group")
        correct = correct_by({name: column[rows] for name, column in columns.items()}, names)
        at = np.array([key[0] for key in correct])
        group, good = np.array([key[2] for key in correct]), np.array([*correct.values()])
        x = np.unique(at)
        points = [(good[at == v], group[at == v]) for v in x]
        bounds = [proportion_interval(*point) or (np.nan, np.nan) for point in points]
        low, high = np.array(bounds).reshape(-1, 2).T
        accuracy = np.array([point[0].mean() for point in points])
        n = max((len(point[0]) for point in points), default=0)
        return Curve(defense, x, accuracy, low, high, n, fixed)


def load_run(path: Path) -> RunRecords:
    """Reads a run directory.

    Raises:
      UserError: no such directory, no predictions in it, or records that do not fit together.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: not a run directory, it has no config.json; give a --workdir")
    if not (path / "predictions.parquet").is_file():
        raise UserError(f"{path}: it has no predictions.parquet; let the run come to its end")
    about = read_saved_config(path / "config.json")
    _check_config(path / "config.json", about["config"])
    run = load_records(path, about)
    shape = next(iter(run.outcomes.values())).score.shape
    found, named = shape[1] if len(shape) > 1 else 2, len(run.class_names)
    if found != named:
        raise UserError(
            f"{path / 'predictions.parquet'}: has scores of {found} classes, and splits.json"
            f" names {named}; remove the file and evaluate again"
        )
    return run


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Raises UserError unless the fields that a report reads are there, and of their types."""
    fields = flatten(config)
    for name, kind in _CONFIG_NEEDED.items():
        value = fields.get(name, 0 if name in ("seed", "data.num_folds", "data.fold") else None)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise UserError(f"{path}: config.{name}={value!r} cannot be; put the file back")
    if not 0 <= fields["attack.epsilon"] < float("inf"):
        raise UserError(f"{path}: config.attack.epsilon must be a finite number of at least 0")


def load_records(path: Path, about: dict[str, Any]) -> RunRecords:
    """Reads the records of a folder that has predictions.

    Args:
      path: the folder.
      about: the content of config.json.
    """
    columns = to_columns(read_table(path / "predictions.parquet"))
    lost = [name for name in _NEEDED if name not in columns]
    lost += [] if {"score", "score_0"} & {*columns} else ["score"]
    if lost:
        raise UserError(f"{path / 'predictions.parquet'}: has no column {', '.join(lost)}")
    examples, outcomes = _align(path, columns)
    return RunRecords(
        path=path,
        config=about["config"],
        about={name: value for name, value in about.items() if name != "config"},
        **examples,
        outcomes=outcomes,
        training=read_metrics(path / "metrics.jsonl"),
        curves=to_columns(read_table(path / "curves.parquet")) or None,
        pictures=_pictures(path / "pictures.npz"),
        detection=_csv(path / "detection.csv"),
        checks=_json(path / "self_checks.json") or None,
        splits=_json(path / "splits.json"),
    )


def _align(path: Path, columns: Columns) -> tuple[dict[str, np.ndarray], dict[Key, Outcome]]:
    """Returns what is known of the examples, and the outcomes in their order."""
    n_rows = len(columns["example"])
    if not n_rows:
        raise UserError(f"{path / 'predictions.parquet'}: no rows; let the run come to its end")
    ids, first, place = np.unique(columns["example"], return_index=True, return_inverse=True)
    examples = {"example": ids}
    for name in ("label", "group", "magnification", "subtype"):
        values = columns.get(name)  # runs made before subtypes were recorded have none
        examples[name] = np.full(len(ids), "") if values is None else values[first]
    outcomes, scores = {}, read_scores(columns)
    for key, indices in group_rows(columns, KEYS).items():
        order = np.argsort(place[indices], kind="stable")
        if not np.array_equal(place[indices][order], np.arange(len(ids))):
            raise UserError(
                f"{path / 'predictions.parquet'}: {' '.join(map(str, key))} has {len(indices)} rows"
                f" for {len(ids)} test examples; remove the file and evaluate again"
            )
        at = indices[order]
        outcomes[key] = Outcome(scores[at].astype(float), columns["predicted"][at])
    for defense in {key[0] for key in outcomes}:
        if (defense, "none", "clean", 0.0) not in outcomes:
            raise UserError(
                f"{path / 'predictions.parquet'}: {defense} has no clean predictions; remove the"
                " file and evaluate again"
            )
    return examples, outcomes


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, read=dict) if path.is_file() else {}


def _csv(path: Path) -> list[dict[str, str]]:
    text = read_record(path).decode(errors="replace") if path.is_file() else ""
    return list(csv.DictReader(text.splitlines()))


def _pictures(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(read_record(path)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged; delete it, and let the run write it again") from error


JOURNAL = "sweep.json"


def expand(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Returns the paths with every sweep replaced by its finished cells, and what is missing.

    Raises:
      UserError: a sweep without a finished cell.
    """
    expanded: list[Path] = []
    missing: list[str] = []
    for path in paths:
        if not (path / JOURNAL).is_file():
            expanded.append(path)
            continue
        cells = read_sweep(path)
        # results.csv is written after every stage but the report.
        finished = [name for name in cells if (path / name / "results.csv").is_file()]
        if not finished:
            raise UserError(f"{path}: no cell of this sweep is finished; run scripts/sweep.py on")
        expanded += [path / name for name in finished]
        missing += [
            f"Cell {name} is missing from these tables:"
            f" {row['failure'] or 'it has not been finished'}."
            for name, row in cells.items()
            if name not in finished
        ]
    return expanded, missing


def read_sweep(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what the journal of a sweep holds of each cell, by name; {}: there is no journal.

    Of every cell at least "failure": why it failed last, one line, "" if it did not.

    Raises:
      UserError: the journal is damaged.
    """
    path = folder / JOURNAL
    if not path.is_file():
        return {}

    def read(content: Any) -> dict[str, dict[str, Any]]:
        rows = content["cells"]
        return {name: {**row, "failure": str(row["failure"])} for name, row in rows.items()}

    return read_json(path, "remove it", read)
