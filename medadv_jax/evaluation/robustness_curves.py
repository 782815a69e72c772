"""Accuracy against the radius, and against the number of steps: rows of `curves.parquet`.

    table = curve_rows(subject, config)      # one defence
    results.write_table(path, pa.concat_tables([read_curves(path), table]))

The radii and numbers of steps of a curve are numbers in one compiled step (`attack_sweep.py`), and
the deployed classifier answers as in the evaluation. The attack stops at the first point that is
misclassified, so that `predicted` is what counts in these rows, and not the height of `score`.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from medadv_jax.attacks import Attack, make_attack
from medadv_jax.attacks.continuous_batching import AttackJob
from medadv_jax.config import Config
from medadv_jax.evaluation.model_under_test import ModelUnderTest, scores
from medadv_jax.evaluation.predictions import SCHEMA, prediction_rows, read_table

EPSILONS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 1.0)  # the paper's search, none, and every image
STEPS = (1, 2, 5, 20)
SCHEMA = SCHEMA.append(pa.field("num_steps", pa.int32()))
EVALUATION = "pgd"


def curve_attack(config: Config, epsilon: float | None = None, steps: int = 0) -> Attack:
    """Returns PGD as in the evaluation, at another radius or of other steps if these are given.

    A step's length follows from both, as in every attack of the config.
    """
    radius = config.attack.epsilon if epsilon is None else epsilon
    number = steps or config.eval.num_steps
    return make_attack(
        "pgd", radius, config.attack.relative_step * radius / number, number,
        norm=config.attack.norm, keep_best=True, num_restarts=config.eval.restarts,
    )  # fmt: skip


def curve_attacks(config: Config) -> list[Attack]:
    """Returns the attacks of both curves.

    The radii have `config.eval.num_steps`; the numbers of steps, among them twice that, have
    `config.attack.epsilon`.
    """
    here, steps = config.attack.epsilon, config.eval.num_steps
    points = {(epsilon, steps) for epsilon in _epsilons(config)}
    points |= {(here, number) for number in {*STEPS, steps, 2 * steps}}
    return [curve_attack(config, *point) for point in sorted(points)]


def _epsilons(config: Config) -> set[float]:
    """The radii: of the largest change, or in L2 as shares of the run's own and of the cube."""
    here = config.attack.epsilon
    if config.attack.norm == "linf":
        return {*EPSILONS, here}
    diagonal = math.sqrt(3 * config.data.image_size**2)
    return {0.0, here / 3, 2 * here / 3, here, 4 * here / 3, 5 * here / 3, diagonal}


def curve_rows(
    subject: ModelUnderTest,
    config: Config,
    advance: Callable[[int], None] = lambda runs: None,
) -> pa.Table:
    """Returns the rows of one defence under the adaptive attacker, on the subject's images.

    `advance` is told the number of runs done, as in `ModelUnderTest.attack`.
    """
    attacks = curve_attacks(config)
    found = subject.attack([AttackJob(attack) for attack in attacks], advance=advance)
    tables = []
    for attack, logits in zip(attacks, found.logits, strict=True):
        rows = prediction_rows(
            (subject.defense, "adaptive", EVALUATION, float(attack.epsilon)), subject.examples,
            scores(logits), logits.argmax(axis=1),
        )  # fmt: skip
        steps = pa.array(np.full(len(subject), attack.num_steps), pa.int32())
        tables.append(rows.append_column(SCHEMA.field("num_steps"), steps))
    return pa.concat_tables(tables)


def read_curves(path: Path) -> pa.Table:
    """Returns the rows of a run so far, none if the file is missing."""
    return read_table(path, SCHEMA)


def accuracies(table: pa.Table, defense: str) -> dict[tuple[float, int], float]:
    """Returns the accuracy of a defence at each (epsilon, number of steps), in that order."""
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    mine = columns["defense"] == defense
    right = columns["predicted"] == columns["label"]
    points = zip(
        columns["epsilon"][mine].tolist(), columns["num_steps"][mine].tolist(), strict=True
    )
    return {
        (epsilon, steps): float(
            right[mine & (columns["epsilon"] == epsilon) & (columns["num_steps"] == steps)].mean()
        )
        for epsilon, steps in sorted(set(points))
    }
