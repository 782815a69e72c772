"""Detectors beside the undefended network: their scores on clean and attacked images, as records.

The network is the base one; detectors that need a purifier use that of the defence `autoencoder`.
The threshold is chosen on clean validation images.
"""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh

from medadv_jax.attacks import Attack
from medadv_jax.classifier import Classifier, Variables, to_pixels
from medadv_jax.data.splits import Example
from medadv_jax.defenses.detectors import DETECTORS, detection_summary, threshold_at
from medadv_jax.distributed import Batch, put_batch
from medadv_jax.evaluation.metrics import worst_attempt
from medadv_jax.evaluation.predictions import group_rows, to_columns, write_csv
from medadv_jax.evaluation.predictor import Penalty, Predictor
from medadv_jax.evaluation.threat_models import Source, Target

SCHEMA = pa.schema(
    [
        ("detector", pa.string()),
        ("threat_model", pa.string()),  # none; oblivious; adaptive: the attack lowers the score too
        ("evaluation", pa.string()),  # clean, or the name of the attack
        ("split", pa.string()),  # validation or test
        ("example", pa.string()),
        ("fooled", pa.bool_()),  # correct when clean, and wrong now: what a detector should find
        ("score", pa.float32()),
    ]
)
COLUMNS = (
    "detector", "threat_model", "evaluation", "n_clean", "n_attacked", "auc",
    "true_positive_rate", "threshold", "false_positive_rate",
)  # fmt: skip

Key = tuple[str, str, str, str]  # detector, threat model, evaluation, split


class Scores(NamedTuple):
    """Of n images: the scores of D detectors (D, n), and whether the network is wrong (n,)."""

    scores: np.ndarray
    wrong: np.ndarray


class Detection:
    """The detectors beside one classifier.

    Args of the constructor: the programs; the classifier's variables, its purifier's among them;
    the devices; the seed of random starts.
    """

    def __init__(
        self, predictor: Predictor[Classifier], variables: Variables, mesh: Mesh, seed: int
    ):
        self._predictor, self._variables, self._mesh = predictor, variables, mesh
        self._source, self._key = Source("bare", variables), jax.random.key(seed)
        self._scores = jax.jit(functools.partial(_all_scores, predictor.classifier))

    def measure(
        self,
        validation: Iterable[Batch],
        test: Sequence[Batch],
        examples: Sequence[Example],
        attacks: Sequence[Attack],
        adaptive: Attack,
        false_positive_rate: float,
        penalty: float,
    ) -> pa.Table:
        """Returns the records.

        Args:
          validation: batches of clean images, for the thresholds.
          test: batches of the images that are attacked.
          examples: of the data set.
          attacks: of the oblivious attacker, on the network alone.
          adaptive: of the adaptive one: beside raising the network's loss it lowers `penalty` ·
            score / threshold, for each detector separately. Of this weight, a tenth of it and
            zero, each image gets the one that fools the network at the lowest score.
          false_positive_rate: of clean validation images, at the threshold.
          penalty: see `adaptive`.
        """
        rows = _Rows(examples)
        batches = [(batch, to_pixels(batch["image"])) for batch in self._placed(validation)]
        clean = rows.add_all("none", "clean", "validation", *self._judge(batches))
        thresholds = [threshold_at(scores, false_positive_rate) for scores in clean.scores]

        placed = list(self._placed(test))
        batches = [(batch, to_pixels(batch["image"])) for batch in placed]
        clean = rows.add_all("none", "clean", "test", *self._judge(batches))
        attacked = [self._predictor.attack(attacks, self._source, b, self._key) for b in placed]
        for number, attack in enumerate(attacks):
            batches = [(b, pixels[number]) for b, pixels in zip(placed, attacked, strict=True)]
            rows.add_all("oblivious", attack.name, "test", *self._judge(batches), clean.wrong)
        for number, (name, threshold) in enumerate(zip(DETECTORS, thresholds, strict=True)):
            score = functools.partial(DETECTORS[name], self._predictor.attacked)
            tried = []
            for weight in (penalty, penalty / 10, 0.0):
                evade = Penalty(score, weight / max(threshold, 1e-12))
                index, found = self._judge([(b, self._evade(adaptive, b, evade)) for b in placed])
                tried.append((found.wrong & ~clean.wrong, found.scores[number]))
            fooled, scores = _best_for_attacker(*(np.stack(x) for x in zip(*tried, strict=True)))
            rows.add((name, "adaptive", adaptive.name, "test"), index, scores, fooled)
        return rows.table()

    def _evade(self, attack: Attack, batch: dict[str, Any], penalty: Penalty) -> jax.Array:
        """Returns the adversarial pixels of an attacker that keeps a detector's score low."""
        return self._predictor.attack([attack], self._source, batch, self._key, penalty)[0]

    def _placed(self, batches: Iterable[Batch]) -> Iterable[dict[str, Any]]:
        return (put_batch(self._mesh, batch) for batch in batches)

    def _judge(self, batches: Sequence[tuple[Any, jax.Array]]) -> tuple[np.ndarray, Scores]:
        """Returns positions in the data set, and the scores of the pixels given with each batch."""
        index, scores, wrong = [], [], []
        for batch, pixels in batches:
            real = np.asarray(batch["mask"]) > 0
            logits = self._predictor.logits(Target("bare", self._variables), pixels)
            index.append(np.asarray(batch["index"])[real])
            scores.append(np.asarray(self._scores(self._variables, pixels))[:, real])
            wrong.append((np.asarray(logits).argmax(-1) != np.asarray(batch["label"]))[real])
        found = Scores(np.concatenate(scores, axis=1), np.concatenate(wrong))
        return np.concatenate(index), found


def _all_scores(classifier: Classifier, variables: Variables, pixels: jax.Array) -> jax.Array:
    return jnp.stack([detector(classifier, variables, pixels) for detector in DETECTORS.values()])


def _best_for_attacker(fooled: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(W, n) of W attempts -> (n,) each: the attempt that fools, and of those the lowest score."""
    chosen = worst_attempt(fooled, -scores)
    images = np.arange(scores.shape[1])
    return fooled[chosen, images], scores[chosen, images]


class _Rows:
    """Collects records."""

    def __init__(self, examples: Sequence[Example]):
        self._examples = examples
        self._tables: list[pa.Table] = []

    def add(self, key: Key, index: np.ndarray, scores: np.ndarray, fooled: np.ndarray) -> None:
        names = ("detector", "threat_model", "evaluation", "split")
        columns: dict[str, Any] = {n: [v] * len(index) for n, v in zip(names, key, strict=True)}
        columns |= {
            "example": [self._examples[i].id for i in index],
            "fooled": fooled,
            "score": scores.astype(np.float32),
        }
        self._tables.append(pa.table(columns, schema=SCHEMA))

    def add_all(
        self,
        threat_model: str,
        evaluation: str,
        split: str,
        index: np.ndarray,
        found: Scores,
        wrong_before: np.ndarray | None = None,
    ) -> Scores:
        """Adds the rows of every detector; returns `found`."""
        before = np.ones_like(found.wrong) if wrong_before is None else wrong_before
        for name, scores in zip(DETECTORS, found.scores, strict=True):
            self.add((name, threat_model, evaluation, split), index, scores, found.wrong & ~before)
        return found

    def table(self) -> pa.Table:
        return pa.concat_tables(self._tables)


def summarize(table: pa.Table, false_positive_rate: float) -> list[dict[str, Any]]:
    """Returns a row of `COLUMNS` for each detector and attack; runs no model.

    Attacked are the examples that were fooled. Where there are none, what depends on them is None.
    """
    columns = to_columns(table)

    def where(**key: str) -> np.ndarray:
        return np.logical_and.reduce([columns[name] == value for name, value in key.items()])

    rows = []
    for detector, threat_model, evaluation in group_rows(columns, COLUMNS[:3]):
        if threat_model == "none":
            continue
        scores = columns["score"]
        chosen_on = scores[where(detector=detector, evaluation="clean", split="validation")]
        clean = scores[where(detector=detector, evaluation="clean", split="test")]
        of = where(detector=detector, threat_model=threat_model, evaluation=evaluation)
        attacked = scores[of & columns["fooled"]]
        threshold = threshold_at(chosen_on, false_positive_rate)
        found: dict[str, Any] = {"false_positive_rate": float(np.mean(clean > threshold))}
        if attacked.size:
            found = detection_summary(clean, attacked, threshold)
        row = dict(zip(COLUMNS, (detector, threat_model, evaluation), strict=False))
        row |= {"n_clean": clean.size, "n_attacked": attacked.size, "threshold": threshold}
        rows.append({name: (row | found).get(name) for name in COLUMNS})
    return rows


def write_summary(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `detection.csv`."""
    write_csv(path, [COLUMNS, *([row[c] for c in COLUMNS] for row in rows)])
