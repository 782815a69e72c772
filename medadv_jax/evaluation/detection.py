"""Detectors beside the undefended network: their scores on clean and attacked images, as records.

The network is the base one; the purifier, where a detector asks it, that of the defence
`autoencoder`. The threshold is chosen on clean validation images.
"""

import csv
import functools
import io
from collections.abc import Callable, Iterable, Sequence
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
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import Source, Target
from medadv_jax.files import write_text

SCHEMA = pa.schema(
    [
        ("detector", pa.string()),
        ("threat_model", pa.string()),  # none; oblivious; adaptive: the attack counts the score in
        ("evaluation", pa.string()),  # clean, or the name of the attack
        ("split", pa.string()),  # validation or test
        ("example", pa.string()),
        ("fooled", pa.bool_()),  # right when clean, and wrong now: what a detector is to find
        ("score", pa.float32()),
    ]
)
COLUMNS = (
    "detector", "threat_model", "evaluation", "n_clean", "n_attacked", "auc",
    "true_positive_rate", "threshold", "false_positive_rate",
)  # fmt: skip

Key = tuple[str, str, str, str]  # detector, threat model, evaluation, split


class Scores(NamedTuple):
    """What detectors and network say of n images: scores (D, n), and whether it is wrong (n,)."""

    scores: np.ndarray
    wrong: np.ndarray


class Detection:
    """The detectors beside one classifier.

    Args of the constructor: the programs; the classifier's variables, its purifier's among them;
    the devices; the seed of random starts.
    """

    def __init__(self, predictor: Predictor, variables: Variables, mesh: Mesh, seed: int):
        self._predictor, self._variables, self._mesh = predictor, variables, mesh
        self._key = jax.random.key(seed)
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
        advance: Callable[[int], None] = lambda images: None,
    ) -> pa.Table:
        """Returns the records.

        Args:
          validation: batches of clean images, for the thresholds.
          test: batches of the images that are attacked.
          examples: of the data set.
          attacks: on the network alone, by an attacker who knows of no detector.
          adaptive: the attack of one who does: it lowers `penalty` · score / threshold beside
            raising the network's loss, for each detector by itself. Of this weight, a tenth of
            it and none, each image gets the one that fools the network at the lowest score.
          false_positive_rate: of clean validation images, at the threshold.
          penalty: see `adaptive`.
          advance: told the number of images scored; see `count_scored`.
        """
        self._advance = advance
        rows = _Rows(examples)
        batches = [(batch, to_pixels(batch["image"])) for batch in self._placed(validation)]
        clean = rows.add_all("none", "clean", "validation", *self._judge(batches))
        thresholds = [threshold_at(scores, false_positive_rate) for scores in clean.scores]

        placed = list(self._placed(test))
        batches = [(batch, to_pixels(batch["image"])) for batch in placed]
        clean = rows.add_all("none", "clean", "test", *self._judge(batches))
        source = Source("bare", self._variables)
        attacked = [self._predictor.attack(attacks, source, b, self._key) for b in placed]
        for number, attack in enumerate(attacks):
            batches = [(b, pixels[number]) for b, pixels in zip(placed, attacked, strict=True)]
            rows.add_all("oblivious", attack.name, "test", *self._judge(batches), clean.wrong)
        for number, (name, threshold) in enumerate(zip(DETECTORS, thresholds, strict=True)):
            evade = functools.partial(_penalty, self._predictor.attacked, name)
            tried = []
            for weight in (penalty, penalty / 10, 0.0):
                scale = jnp.float32(weight / max(threshold, 1e-12))
                source = Source("bare", {**self._variables, "penalty": scale})
                index, found = self._judge(
                    (b, self._predictor.attack([adaptive], source, b, self._key, evade)[0])
                    for b in placed
                )
                tried.append((found.wrong & ~clean.wrong, found.scores[number]))
            fooled, scores = _best_for_attacker(*(np.stack(x) for x in zip(*tried, strict=True)))
            rows.add((name, "adaptive", adaptive.name, "test"), index, scores, fooled)
        return rows.table()

    def _placed(self, batches: Iterable[Batch]) -> Iterable[dict[str, Any]]:
        return (put_batch(self._mesh, batch) for batch in batches)

    def _judge(self, batches: Iterable[tuple[Any, jax.Array]]) -> tuple[np.ndarray, Scores]:
        """Returns positions in the data set, and what is said of the pixels beside each batch."""
        index, scores, wrong = [], [], []
        for batch, pixels in batches:
            real = np.asarray(batch["mask"]) > 0
            self._advance(int(real.sum()))
            logits = self._predictor.logits(Target("bare", self._variables), pixels)
            index.append(np.asarray(batch["index"])[real])
            scores.append(np.asarray(self._scores(self._variables, pixels))[:, real])
            wrong.append((np.asarray(logits).argmax(-1) != np.asarray(batch["label"]))[real])
        found = Scores(np.concatenate(scores, axis=1), np.concatenate(wrong))
        return np.concatenate(index), found


def _all_scores(classifier: Classifier, variables: Variables, pixels: jax.Array) -> jax.Array:
    return jnp.stack([detector(classifier, variables, pixels) for detector in DETECTORS.values()])


def _penalty(
    classifier: Classifier, name: str, variables: Variables, pixels: jax.Array
) -> jax.Array:
    return variables["penalty"] * DETECTORS[name](classifier, variables, pixels)


def _best_for_attacker(fooled: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(W, n) of W attempts -> (n,) each: the attempt that fools, and of those the lowest score."""
    choice = np.lexsort((scores, ~fooled), axis=0)[0]
    images = np.arange(scores.shape[1])
    return fooled[choice, images], scores[choice, images]


class _Rows:
    """Records, piece by piece."""

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
        """Adds every detector's; returns what it was given."""
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
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}

    def where(**key: str) -> np.ndarray:
        return np.logical_and.reduce([columns[name] == value for name, value in key.items()])

    rows = []
    keys = zip(columns["detector"], columns["threat_model"], columns["evaluation"], strict=True)
    for detector, threat_model, evaluation in dict.fromkeys(keys):
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
    """Writes `detection.csv`; a number that has no meaning is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([["" if row[c] is None else row[c] for c in COLUMNS] for row in rows])
    write_text(path, text.getvalue())


def count_scored(validation: int, test: int, attacks: int) -> int:
    """Returns how many images `Detection.measure` scores, attacked copies counted each."""
    return validation + test * (1 + attacks + 3 * len(DETECTORS))
