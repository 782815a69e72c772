"""Detectors beside the undefended network: their scores on clean and attacked images, as records.

The network is the base one; detectors that need a purifier use that of the defence `autoencoder`.
The threshold is chosen on clean validation images.
"""

import functools
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
from medadv_jax.distributed import Batch, Share, put_batch
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


class Scores(NamedTuple):
    """Of n images.

    Attributes:
      index: (n,) positions in the data set.
      scores: (D, n) of each detector.
      wrong: (n,) bool, is the network wrong?
    """

    index: np.ndarray
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
        advance: Callable[[int], None] = lambda images: None,
        shares: tuple[Share, Share] | None = None,
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
          advance: told the number of images scored; see `count_scored`.
          shares: whose rows `validation` and `test` hold; the records are then of all processes.
        """
        self._advance = advance
        of_validation, of_test = shares or (None, None)
        chosen_on, clean = self._clean(validation, of_validation), self._clean(test, of_test)
        tables = _rows(("none", "clean", "validation"), examples, chosen_on)
        tables += _rows(("none", "clean", "test"), examples, clean)
        found_by = self._attacked(attacks, test, of_test)
        for attack, found in zip(attacks, found_by, strict=True):
            fooled = found.wrong & ~clean.wrong
            tables += _rows(("oblivious", attack.name, "test"), examples, found, fooled)
        for number, name in enumerate(DETECTORS):
            threshold = threshold_at(chosen_on.scores[number], false_positive_rate)
            weights = [w / max(threshold, 1e-12) for w in (penalty, penalty / 10, 0.0)]
            wrong, scores = self._evade(number, adaptive, test, of_test, weights)
            fooled, scores = _best_for_attacker(wrong & ~clean.wrong, scores)
            key = (name, "adaptive", adaptive.name, "test")
            tables.append(_table(key, examples, clean.index, scores, fooled))
        return pa.concat_tables(tables)

    def _evade(
        self,
        number: int,
        attack: Attack,
        test: Sequence[Batch],
        share: Share | None,
        weights: Sequence[float],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Attacks network and one detector with W weights: wrong (W, n), and scores (W, n)."""
        score = functools.partial([*DETECTORS.values()][number], self._predictor.attacked)
        penalties = [Penalty(score, weight) for weight in weights]
        tried = [self._attacked([attack], test, share, penalty)[0] for penalty in penalties]
        return np.stack([t.wrong for t in tried]), np.stack([t.scores[number] for t in tried])

    def _attacked(
        self,
        attacks: Sequence[Attack],
        test: Iterable[Batch],
        share: Share | None,
        penalty: Penalty | None = None,
    ) -> list[Scores]:
        """Returns the scores of what each attack finds, a batch on the devices at a time."""
        found = []
        for batch in self._placed(test):
            pixels = self._predictor.attack(attacks, self._source, batch, self._key, penalty)
            found.append([self._judge(batch, each) for each in pixels])
        return [_join(parts, share) for parts in zip(*found, strict=True)]

    def _placed(self, batches: Iterable[Batch]) -> Iterable[dict[str, Any]]:
        return (put_batch(self._mesh, batch) for batch in batches)

    def _clean(self, batches: Iterable[Batch], share: Share | None) -> Scores:
        placed = self._placed(batches)
        return _join([self._judge(batch, to_pixels(batch["image"])) for batch in placed], share)

    def _judge(self, batch: Any, pixels: jax.Array) -> Scores:
        """Returns the scores of pixels (B, H, W, 3) in place of a batch's images."""
        real = np.asarray(batch["mask"]) > 0
        self._advance(int(real.sum()))
        logits = self._predictor.logits(Target("bare", self._variables), pixels)
        wrong = np.asarray(logits).argmax(-1) != np.asarray(batch["label"])
        scores = np.asarray(self._scores(self._variables, pixels))
        return Scores(np.asarray(batch["index"])[real], scores[:, real], wrong[real])


def _join(parts: Sequence[Scores], share: Share | None) -> Scores:
    """Returns the scores of all batches, and of a share those of all processes."""
    whole = [np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)]
    return Scores(*(share.gather(each, each.ndim - 1) for each in whole) if share else whole)


def _rows(
    key: tuple[str, str, str],
    examples: Sequence[Example],
    found: Scores,
    fooled: np.ndarray | None = None,
) -> list[pa.Table]:
    """Returns the records of every detector; key: threat model, evaluation, split."""
    fooled = np.zeros_like(found.wrong) if fooled is None else fooled
    return [
        _table((name, *key), examples, found.index, scores, fooled)
        for name, scores in zip(DETECTORS, found.scores, strict=True)
    ]


def _table(
    key: tuple[str, str, str, str],
    examples: Sequence[Example],
    index: np.ndarray,
    scores: np.ndarray,
    fooled: np.ndarray,
) -> pa.Table:
    ids = [examples[i].id for i in index]
    columns = [*([value] * len(index) for value in key), ids, fooled, scores.astype(np.float32)]
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


def _all_scores(classifier: Classifier, variables: Variables, pixels: jax.Array) -> jax.Array:
    return jnp.stack([detector(classifier, variables, pixels) for detector in DETECTORS.values()])


def _best_for_attacker(fooled: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(W, n) of W attempts -> (n,) each: the attempt that fools, and of those the lowest score."""
    chosen = worst_attempt(fooled, -scores)
    images = np.arange(scores.shape[1])
    return fooled[chosen, images], scores[chosen, images]


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
    """Writes `detection.csv`; a number that has no meaning is an empty cell."""
    write_csv(path, [COLUMNS, *([row[c] for c in COLUMNS] for row in rows)])


def count_scored(validation: int, test: int, attacks: int) -> int:
    """Returns how many images `Detection.measure` scores, attacked copies counted each."""
    return validation + test * (1 + attacks + 3 * len(DETECTORS))
