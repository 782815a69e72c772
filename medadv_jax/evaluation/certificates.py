"""Records of certificates: `certificates.parquet`, one row for each classifier and image.

Imports no JAX, so that a report can read them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from medadv_jax.data.splits import Example
from medadv_jax.evaluation.predictions import Columns, read_table, to_columns, write_table
from medadv_jax.evaluation.statistics import Interval, proportion_interval

CERTIFICATES = "certificates.parquet"
ABSTAINS, NOT_ATTACKED = -1, -2
RADII = (0.0, 0.25, 0.5, 1.0)  # L2, in pixels of [0, 1]; of tables

SCHEMA = pa.schema(
    [
        ("defense", pa.string()),
        ("sigma", pa.float64()),  # of the noise, in pixels of [0, 1]
        ("example", pa.string()),
        ("group", pa.string()),  # patient or case
        ("label", pa.int32()),
        ("predicted", pa.int32()),  # -1: abstains
        ("radius", pa.float64()),  # L2, in pixels of [0, 1]
        ("selected", pa.list_(pa.int32())),  # counts of the draws that choose the class
        ("counts", pa.list_(pa.int32())),  # counts of the others
        ("selection", pa.int32()),  # n₀
        ("draws", pa.int32()),  # n
        ("alpha", pa.float64()),
        ("pixels", pa.int32()),  # values of an image
        ("seconds", pa.float64()),  # since the certificate before
        ("attacked_radius", pa.float64()),  # L2; 0: not attacked
        ("attacked_votes", pa.list_(pa.int32())),  # votes of the smoothed classifier under attack
    ]
)


class Settings(NamedTuple):
    """How images are certified.

    Attributes:
      selection: n₀, draws that choose the class.
      draws: n, draws that bound its probability.
      alpha: α, the probability that a promise is wrong.
    """

    selection: int = 100
    draws: int = 10_000
    alpha: float = 0.001


class Certificate(NamedTuple):
    """What is promised of one image.

    Attributes:
      image: its position.
      predicted: the class; `ABSTAINS` where the classifier abstains.
      radius: L2, in pixels of [0, 1]; 0 where it abstains.
      selected: (K,) counts of the draws that choose the class.
      counts: (K,) counts of the other draws, which end early where only abstaining is left.
    """

    image: int
    predicted: int
    radius: float
    selected: np.ndarray
    counts: np.ndarray

    @property
    def calls(self) -> int:
        """How often the network was called."""
        return int(self.selected.sum() + self.counts.sum())


class SmoothedAttack(NamedTuple):
    """Settings of the attack and of the vote on what it finds.

    Attributes:
      radius: L2, in pixels of [0, 1].
      steps: of PGD.
      samples: draws of the expectation.
      votes: other draws, of the smoothed classifier that is to be fooled.
    """

    radius: float
    steps: int = 20
    samples: int = 16
    votes: int = 200


class Subject(NamedTuple):
    """What rows are about.

    Attributes:
      defense: its name.
      sigma: of the noise, in pixels of [0, 1].
      settings: of the certificates.
      attack: what some images were attacked by.
    """

    defense: str
    sigma: float
    settings: Settings
    attack: SmoothedAttack


def read_certificates(run: Path) -> pa.Table:
    """Returns the certificates of a run so far."""
    return read_table(run / CERTIFICATES, SCHEMA)


def same_subject(table: pa.Table, subject: Subject) -> np.ndarray:
    """Returns (rows,) bool: which rows are of this classifier, made with these settings."""
    columns = to_columns(table)
    settings, attacked = subject.settings, columns["attacked_radius"]
    return (
        (columns["defense"] == subject.defense)
        & (columns["sigma"] == subject.sigma)
        & (columns["selection"] == settings.selection)
        & (columns["draws"] == settings.draws)
        & (columns["alpha"] == settings.alpha)
        & ((attacked == 0) | (attacked == subject.attack.radius))
    )


def certificate_row(
    subject: Subject, example: Example, found: Certificate, pixels: int, seconds: float,
    votes: Sequence[int] = (),
) -> pa.Table:  # fmt: skip
    """Returns the row of one image; `votes` under attack, if it was attacked."""
    row = {
        "defense": subject.defense, "sigma": subject.sigma, "example": example.id,
        "group": example.group, "label": example.label, "predicted": found.predicted,
        "radius": found.radius, "selected": found.selected.tolist(),
        "counts": found.counts.tolist(), "selection": subject.settings.selection,
        "draws": subject.settings.draws, "alpha": subject.settings.alpha, "pixels": pixels,
        "seconds": seconds, "attacked_radius": subject.attack.radius if len(votes) else 0.0,
        "attacked_votes": [int(count) for count in votes],
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=SCHEMA)


def write_certificates(run: Path, tables: Iterable[pa.Table]) -> None:
    """Writes the rows of all tables as the certificates of a run."""
    write_table(run / CERTIFICATES, pa.concat_tables([SCHEMA.empty_table(), *tables]))


def attacked_prediction(columns: Columns) -> np.ndarray:
    """Returns (rows,) int: the class that most votes under attack name; `NOT_ATTACKED`."""
    return np.array(
        [int(np.argmax(votes)) if len(votes) else NOT_ATTACKED for votes in columns[
            "attacked_votes"]], int,
    )  # fmt: skip


def certified_accuracy(columns: Columns, at: float) -> tuple[float, Interval | None]:
    """Returns the share of images whose right class is certified at the L2 radius `at`, and its
    95 % interval by patients."""
    good = certified_correct(columns["predicted"], columns["radius"], columns["label"], at)
    return float(good.mean()), proportion_interval(good, columns["group"])


def certified_correct(
    predicted: np.ndarray, radius: np.ndarray, labels: np.ndarray, at: float
) -> np.ndarray:
    """Returns (n,) bool: is the right class certified at the L2 radius `at`? (all (n,))."""
    return (predicted == labels) & (radius > 0) & (radius >= at)


def linf_radius(radius: float, pixels: int) -> float:
    """Returns the L∞ radius of the cube inside an L2 ball: r / √d, d = `pixels` values."""
    return radius / float(np.sqrt(pixels))
