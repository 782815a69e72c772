"""The records of a run as a report asks for them, in one order of examples; see `read_runs.py`."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from medadv_jax.data.splits import saved_class_names
from medadv_jax.evaluation.checks.sample_size import sample_size_warnings
from medadv_jax.evaluation.intervals import metric_intervals
from medadv_jax.evaluation.metrics import Metrics, summarize, worst_prediction
from medadv_jax.evaluation.predictions import (
    Columns,
    Key,
    correct_by,
)
from medadv_jax.evaluation.statistics import Interval, cluster_weights, proportion_interval

# The order of every table.
DEFENSES = ("base", "adversarial", "autoencoder", "hybrid", "joint", "purified")
# Have an oblivious attacker, who does not know the purifier.
PURIFIED = ("autoencoder", "hybrid", "joint", "purified")
THREATS = ("transfer", "oblivious", "adaptive")
PHANTOMS = "phantoms"
_TITLES = {
    "phantoms_xray": "Chest X-ray (generated)", "phantoms_histology": "Breast tissue (generated)",
    PHANTOMS: "Generated images", "chest_xray": "Chest X-ray", "breakhis": "BreakHis",
    "folder": "Images of a folder", "vgg16": "VGG16", "vgg19": "VGG19", "resnet50": "ResNet50",
    "inception_v3": "InceptionV3",
}  # fmt: skip


def title_of(name: str) -> str:
    """Returns a data set's or a network's name for people; an unknown one as it is."""
    first, mark, classes = name.partition("_classes")[0].rpartition("_")
    if name.endswith("_classes") and mark:
        return f"{title_of(first)}, {classes} classes"
    return _TITLES.get(name, name)


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
      certificates: columns of certificates.parquet.
      cost: the content of training_cost.json.
      inference_cost: the content of inference_cost.json.
      calibration: columns of calibration.parquet.
      interpretability: columns of interpretability.parquet.
      saliency_maps: arrays of saliency_maps.npz.
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
    certificates: Columns | None = None
    cost: dict[str, Any] = dataclasses.field(default_factory=dict)
    inference_cost: dict[str, Any] = dataclasses.field(default_factory=dict)
    calibration: Columns | None = None
    interpretability: Columns | None = None
    saliency_maps: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

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
    def prediction_cost(self) -> dict[str, dict[str, float]]:
        """Defence -> parameters, FLOPs and milliseconds of a prediction; {}: not measured."""
        return self.inference_cost.get("classifiers", {})

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
